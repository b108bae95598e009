"""Progress of long work: a callable that gets the stage, how much is done, and of how much; and signals that end it.

The handler of a signal raises wherever the program is; in the callback of a weak reference, or in a library that catches
everything, that gets lost. So it is remembered, and raised again before an output gets its name, where progress is told,
and as a verb ends.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from shortstack.machine.formats import printable

LINE_SECONDS = 30.0  # between two lines of a stage in a log
CELL_SECONDS = 0.5  # between two drawings below a cell
PACE_SECONDS = 600.0  # over which a bar's pace is taken


class Progress(Protocol):
    """`progress("scoring", 12, 465)`; called with done == total when a stage ends. The command line draws a bar.

    note: what else there is to say, such as a speed.
    """

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None: ...


def silent(_stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
    """Report nothing."""


def in_notebooks(stage: str, done: int, total: int, /, *, note: str = "") -> None:
    """Show a bar for each stage below the cell of a notebook, nothing elsewhere: the default of what a user calls."""
    if _in_notebook() and first_process():
        cell = getattr(sys.modules["IPython"].get_ipython(), "execution_count", 0)
        _below(cell)(stage, done, total, note=note)


@functools.lru_cache(maxsize=1)
def _below(_cell: int) -> Progress:
    """Return the progress display of a running cell, keyed by how many ran before it."""
    return _Cell()


def under(progress: Progress, prefix: str) -> Progress:
    """Put a prefix before every stage's name.

    >>> under(lambda stage, done, total, /, *, note="": print(stage, done, total), "turn 1 of 3: ")("scoring", 1, 2)
    turn 1 of 3: scoring 1 2
    """

    def prefixed(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        progress(f"{prefix}{stage}", done, total, note=note)

    return prefixed


def paced(progress: Progress, tokens: int, *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Show a speed beside the progress: `tokens` are read until the end.

    >>> seconds = iter((0.0, 2.0))
    >>> told = paced(lambda *said, note="": print(*said, note), 1000, clock=lambda: next(seconds))
    >>> told("scoring", 1, 2)
    scoring 1 2 250 tokens/s
    """
    begun = clock()

    def with_speed(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        spent = clock() - begun
        read = tokens * done / max(total, 1)
        speed = f"{read / spent:,.0f} tokens/s" if spent > 0 and read > 0 else ""
        progress(stage, done, total, note=", ".join(filter(None, (note, speed))))

    return with_speed


def say(message: str) -> None:
    """Write a line on stderr. Where that is a file on a full disk the line is lost, and the work goes on."""
    try:
        sys.stderr.write(printable(message) + "\n")
    except BrokenPipeError:  # whoever read has read enough
        raise
    except OSError:
        return


def first_process() -> bool:
    """Say whether this process writes to the terminal: the only one, or the first of those that train together."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def bars(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Show progress bars with ETA, one per stage: on stderr in a terminal, and in a notebook below the cell.

    Where stderr is no terminal there are plain lines; nothing when quiet.

    >>> with bars() as progress:  # doctest: +SKIP
    ...     ss.shrink("demo", "small", progress=progress)
    """
    if not verbose:
        _hush_libraries()
    with _shown(quiet=quiet) as shown:

        def stoppable(stage: str, done: int, total: int, /, *, note: str = "") -> None:
            check_stopped()
            shown(stage, done, total, note=note)

        yield stoppable


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress]:
    if quiet or not first_process():
        yield silent
    elif _in_notebook():
        yield _Cell()
    elif sys.stderr.isatty():
        drawn = _Bars()
        with drawn.live:
            yield drawn
    else:
        yield _Lines()


def _in_notebook() -> bool:
    """Tell whether a Jupyter kernel runs this code; what it starts with `!` is not in it."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


class _Bars:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Live

        self.live = Live(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            speed_estimate_period=PACE_SECONDS,
            get_time=time.monotonic,
        )
        self.stages: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        task = self.stages.get(stage)
        if task is None or task.finished or done < task.completed:  # one of its name that begins anew is another
            self.live.add_task(stage, total=total, note=note)
            self.stages[stage] = task = self.live.tasks[-1]
        task.total = total  # by update() a stage would forget its pace whenever its total changes
        self.live.update(task.id, completed=done, note=note)


class _Cell(_Bars):
    """The same below the cell of a notebook, drawn again twice a second."""

    def __init__(self) -> None:
        super().__init__()
        self.place: Any = None
        self.drawn = -math.inf

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        from IPython.display import display

        super().__call__(stage, done, total, note=note)
        if done < total and time.monotonic() - self.drawn < CELL_SECONDS:
            return
        self.drawn = time.monotonic()
        if self.place:
            self.place.update(self.live)
        else:
            self.place = display(self.live, display_id=True)


class _Lines:
    """Lines on stderr, for logs: a stage's beginning, its end, and every LINE_SECONDS how far it is."""

    def __init__(self) -> None:
        self.begun: dict[str, tuple[float, int]] = {}
        self.shown: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        now = time.monotonic()
        if done < total and now - self.shown.get(stage, -math.inf) < LINE_SECONDS:
            return
        began, before = self.begun.setdefault(stage, (now, done))
        self.shown[stage], spent, passed = now, now - began, done - before
        left = f"{spent / passed * (total - done):.0f} s left" if spent and passed > 0 and done < total else ""
        say(", ".join(filter(None, (f"{stage}: {done / max(total, 1):.0%}", left, note))))
        if done >= total:
            del self.begun[stage], self.shown[stage]


def _hush_libraries() -> None:
    """Ask transformers for errors alone, by its variable where it is not imported yet: its advice would break our bars."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    hush_kernels()
    if (logging := sys.modules.get("transformers.utils.logging")) is not None:
        logging.set_verbosity_error()


def hush_transformers() -> None:
    """Turn off the bars of transformers, before it draws one, where it is asked for errors alone."""
    from transformers.utils import logging

    if logging.get_verbosity() >= logging.ERROR:
        logging.disable_progress_bar()


def hush_kernels() -> None:
    """Silence what libraries warn of while they are imported: kernels that this machine has no use for."""
    import logging

    for name in ("bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


_heard: list[int] = []


def heard(number: int) -> BaseException:
    """Remember a signal; returns what its handler is to raise."""
    _heard.append(number)
    return _raised(number)


def check_stopped() -> None:
    """Raise again what a handler raised, if the program goes on as if nothing had been.

    Only in the main thread, and not while an error or that very signal is being dealt with.
    """
    if _heard and threading.current_thread() is threading.main_thread() and sys.exc_info()[0] is None:
        raise _raised(_heard[-1])


def last_heard() -> int | None:
    """Return the signal that told the program to stop."""
    return _heard[-1] if _heard else None


def forget_signals() -> None:
    """Forget the signals heard, since the program that they stopped has ended."""
    _heard.clear()


def _raised(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
