"""Progress of long work: a callable that gets the stage, how much is done, and of how much; shown by rich."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from shortstack.machine.formats import printable

PACE_SECONDS = 600.0  # over which a bar's pace is taken


class Progress(Protocol):
    """`progress("scoring", 12, 465)`; called with done == total when a stage ends. note: text beside it, such as a speed."""

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None: ...


def silent(_stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
    """Report nothing."""


def under(progress: Progress, prefix: str) -> Progress:
    """Put a prefix before every stage's name.

    >>> under(lambda stage, done, total, /, *, note="": print(stage, done, total), "round 1 of 3: ")("scoring", 1, 2)
    round 1 of 3: scoring 1 2
    """

    def prefixed(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        progress(f"{prefix}{stage}", done, total, note=note)

    return prefixed


def paced(progress: Progress, tokens: int, *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Show a speed beside the progress: `tokens` are read until the end.

    >>> seconds = iter((0.0, 2.0))
    >>> report = paced(lambda *shown, note="": print(*shown, note), 1000, clock=lambda: next(seconds))
    >>> report("scoring", 1, 2)
    scoring 1 2 250 tokens/s
    """
    begun = clock()

    def with_speed(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        spent, read = clock() - begun, tokens * done / max(total, 1)
        speed = f"{read / spent:,.0f} tokens/s" if spent > 0 and read > 0 else ""
        progress(stage, done, total, note=", ".join(filter(None, (note, speed))))

    return with_speed


def say(message: str) -> None:
    """Write a line on stderr. Where that is a file on a full disk the line is lost, and the work goes on."""
    try:
        sys.stderr.write(printable(message) + "\n")
    except BrokenPipeError:
        raise
    except OSError:
        return


def first_process() -> bool:
    """Return whether this process writes to the terminal: the only one, or the first of those that train together."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bar(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Show a progress bar with ETA for each stage, on stderr or in a notebook; a log gets them at the end.

    quiet: show nothing. verbose: let libraries log, too.

    >>> with progress_bar() as progress:  # doctest: +SKIP
    ...     ss.shrink("demo", "small", progress=progress)
    """
    if not verbose:
        hush_libraries()
    if quiet or not first_process():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Live

    live = Live(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        speed_estimate_period=PACE_SECONDS,
    )
    with live:
        yield _reporter(live)


def _reporter(live: Any) -> Progress:
    """Return a callable that draws each stage as a task of rich; a stage that begins anew is another task."""
    stages: dict[str, Any] = {}

    def report(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        task = stages.get(stage)
        if task is None or task.finished or done < task.completed:
            live.add_task(stage, total=total, note=note)
            stages[stage] = task = live.tasks[-1]
        task.total = total  # by update() a stage would forget its pace whenever its total changes
        live.update(task.id, completed=done, note=note)

    return report


def hush_libraries() -> None:
    """Ask libraries for errors alone, before or after they are imported: their advice would break the bars."""
    import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("transformers", "bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def hush_transformers() -> None:
    """Turn off the bars of transformers, before it draws one, where it logs errors alone."""
    from transformers.utils import logging

    if logging.get_verbosity() >= logging.ERROR:
        logging.disable_progress_bar()
