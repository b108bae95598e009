"""What people see: tables on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from shortstack.errors import ShortstackError
from shortstack.jsonfiles import finite
from shortstack.progress import Progress, silent

# What is set flush right: a number, its share, or its unit beside it.
NUMBER = re.compile(r"-|inf|[\d.,e+-]+( ?(%|M|[kMGT]?B))?( \([-+. \d]+%?\)| \+- [\d.]+| to .+)?")


def show_json(data: Mapping[str, Any]) -> None:
    """One JSON object on stdout; infinities, which JSON has no word for, as null."""
    json.dump(finite(data), sys.stdout)
    sys.stdout.write("\n")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; columns of numbers are flush right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        numbers = index and all(NUMBER.fullmatch(row[index]) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: names from a checkpoint are never markup
    Console().print(table)


def show_columns(title: str, first: tuple[str, Sequence[str]], columns: Mapping[str, Sequence[str]]) -> None:
    """Columns of cells by their headings, in as many tables as the terminal's width needs; the first is in each of them."""
    heading, names = first
    widths = {name: max(len(name), *map(len, cells)) + 3 for name, cells in columns.items()}
    room = width() - max(len(heading), *map(len, names)) - 4
    for number, some in enumerate(fitting(widths, room)):
        rows = [[name, *(columns[column][row] for column in some)] for row, name in enumerate(names)]
        show_table("" if number else title, [heading, *some], rows)


def fitting(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """The names, in rows that are at most so wide.

    >>> fitting({"a": 3, "b": 3, "c": 5}, 7)
    [['a', 'b'], ['c']]
    """
    rows: list[list[str]] = [[]]
    for name, each in widths.items():
        if rows[-1] and sum(widths[other] for other in rows[-1]) + each > room:
            rows.append([])
        rows[-1].append(name)
    return rows


def width() -> int:
    """Columns of the terminal that stdout is, or 80."""
    from rich.console import Console

    return Console().width


def show(message: str) -> None:
    """A line of the result, on stdout."""
    sys.stdout.write(message + "\n")


def say(message: str) -> None:
    """A line on stderr."""
    sys.stderr.write(message + "\n")


def next_step(command: str) -> None:
    """The one thing to type next."""
    say(f"\nNext: {command}")


def fail(error: ShortstackError) -> None:
    """An error as three short lines on stderr."""
    say(f"Error: {error.where}\n  expected  {error.expected}\n  found     {error.found}\n  to fix it {error.fix}")


def first_process() -> bool:
    """Whether this is the process that speaks: the only one, or the first of those that train together."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def bars(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Progress bars with ETA on stderr, one per stage; plain lines when stderr is no terminal; nothing when quiet."""
    if not verbose:
        _hush_libraries()
    if quiet or not first_process():
        yield silent
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=Console(stderr=True)) as live:
            tasks: dict[str, Any] = {}

            def advance(stage: str, done: int, total: int, /, *, note: str = "") -> None:
                if stage not in tasks or live.tasks[tasks[stage]].finished:
                    tasks[stage] = live.add_task(stage, total=total, note=note)
                live.update(tasks[stage], completed=done, total=total, note=note)

            yield advance


class _Lines:
    """Progress for logs: a line at the start, middle and end of a stage, with the seconds an ETA would need."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.shown: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        import time

        now = time.monotonic()
        start = self.started.setdefault(stage, now)
        quarter = 4 * done // max(total, 1)
        if quarter == self.shown.get(stage):
            return
        self.shown[stage] = quarter
        left = f", {(now - start) / done * (total - done):.0f} s left" if now - start > 1 and done < total else ""
        say(f"{stage}: {done / max(total, 1):.0%}{left}" + (f", {note}" if note else ""))
        if done >= total:
            self.started.pop(stage), self.shown.pop(stage)


def _hush_libraries() -> None:
    """transformers' own bars and advice would interleave with ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hush_kernels()
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def hush_kernels() -> None:
    """Libraries warn, while they are imported, of kernels that this machine has no use for."""
    import logging

    for name in ("bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def size(nbytes: float) -> str:
    """Bytes for people.

    >>> size(212_388_480)
    '212.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


def number(value: float) -> str:
    """A perplexity for people: four digits, and words where digits stop meaning anything.

    >>> [number(value) for value in (11.2543, 1234.5, 7_912_345.0, 0.02113)]
    ['11.25', '1,234', '7.91e+06', '0.02113']
    """
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """A time for people, in its two largest units.

    >>> [duration(value) for value in (0.42, 75, 7_260, 200_000, None)]
    ['0.4 s', '1 min 15 s', '2 h 1 min', '2 d 8 h', 'unknown']
    """
    if seconds is None:
        return "unknown"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for large, small, one, other in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if seconds >= large:
            whole, rest = divmod(round(seconds / small), large // small)
            return f"{whole} {one} {rest} {other}"
    return f"{seconds:.0f} s"
