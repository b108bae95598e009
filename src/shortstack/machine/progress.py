"""Progress of long work: a callable that gets the stage, how much is done, and of how much."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """`progress("scoring", 12, 465)`; called with done == total when a stage ends. The command line draws a bar.

    note: what else there is to say, such as a speed.
    """

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None: ...


def silent(_stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
    """The default: report nothing."""


def under(progress: Progress, prefix: str) -> Progress:
    """The same progress, every stage's name with a prefix.

    >>> under(lambda stage, done, total, /, *, note="": print(stage, done, total), "turn 1 of 3: ")("scoring", 1, 2)
    turn 1 of 3: scoring 1 2
    """

    def told(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        progress(f"{prefix}{stage}", done, total, note=note)

    return told


def say(message: str) -> None:
    """A line on stderr."""
    sys.stderr.write(message + "\n")


def first_process() -> bool:
    """Whether this process writes to the terminal: the only one, or the first of those that train together."""
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
