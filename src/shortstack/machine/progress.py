"""Progress of long work: a callable that gets the stage, how much is done, and of how much."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Protocol

from shortstack.machine.formats import printable
from shortstack.machine.stopping import check_stopped


class Progress(Protocol):
    """`progress("scoring", 12, 465)`; called with done == total when a stage ends. The command line draws a bar.

    note: what else there is to say, such as a speed.
    """

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None: ...


def silent(_stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
    """Report nothing."""


def in_notebooks(stage: str, done: int, total: int, /, *, note: str = "") -> None:
    """The default of what a user calls: a line for each stage below the cell of a notebook, nothing elsewhere."""
    if _in_notebook() and first_process():
        cell = getattr(sys.modules["IPython"].get_ipython(), "execution_count", 0)
        _below(cell)(stage, done, total, note=note)


@functools.lru_cache(maxsize=1)
def _below(_cell: int) -> Progress:
    """What shows the stages of a cell that runs, by how many ran before it."""
    return _Notebook()


def under(progress: Progress, prefix: str) -> Progress:
    """The same progress, every stage's name with a prefix.

    >>> under(lambda stage, done, total, /, *, note="": print(stage, done, total), "turn 1 of 3: ")("scoring", 1, 2)
    turn 1 of 3: scoring 1 2
    """

    def told(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        progress(f"{prefix}{stage}", done, total, note=note)

    return told


def paced(
    progress: Progress, tokens: int, *, share: float = 0.0, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """The same progress with a speed beside it: `tokens` are read until the end, a share of them before now.

    >>> seconds = iter((0.0, 2.0))
    >>> told = paced(lambda *said, note="": print(*said, note), 1000, clock=lambda: next(seconds))
    >>> told("scoring", 1, 2)
    scoring 1 2 250 tokens/s
    """
    begun = clock()

    def told(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        spent = clock() - begun
        read = tokens * (done / max(total, 1) - share)
        speed = f"{read / spent:,.0f} tokens/s" if spent > 0 and read > 0 else ""
        progress(stage, done, total, note=", ".join(filter(None, (note, speed))))

    return told


def say(message: str) -> None:
    """A line on stderr. Where that is a file on a full disk the line is lost, and the work goes on."""
    try:
        sys.stderr.write(printable(message) + "\n")
    except BrokenPipeError:  # whoever read has read enough
        raise
    except OSError:
        return


def first_process() -> bool:
    """Whether this process writes to the terminal: the only one, or the first of those that train together."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def bars(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Progress bars with ETA, one per stage: on stderr in a terminal, and in a notebook below the cell.

    Where stderr is no terminal there are plain lines; nothing when quiet.

    >>> with bars() as progress:  # doctest: +SKIP
    ...     ss.shrink("demo", "small", progress=progress)
    """
    if not verbose:
        _hush_libraries()
    with _shown(quiet=quiet) as shown:

        def told(stage: str, done: int, total: int, /, *, note: str = "") -> None:
            check_stopped()
            shown(stage, done, total, note=note)

        yield told


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress]:
    """What draws or prints it."""
    if quiet or not first_process():
        yield silent
    elif _in_notebook():
        yield _Notebook()
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),  # rich's own forgets its pace whenever a total changes
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=Console(stderr=True)) as live:
            tasks: dict[str, tuple[Any, float]] = {}

            def advance(stage: str, done: int, total: int, /, *, note: str = "") -> None:
                now = time.monotonic()
                if stage not in tasks or live.tasks[tasks[stage][0]].finished:
                    tasks[stage] = live.add_task(stage, total=total, note=note, eta="-:--:--"), now
                task, begun = tasks[stage]
                left = seconds_left(now - begun, done, total)
                eta = "-:--:--" if left is None else str(timedelta(seconds=round(left)))
                live.update(task, completed=done, total=total, note=note, eta=eta)

            yield advance


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code; what it starts with `!` is not in it."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


def seconds_left(spent: float, done: int, total: int) -> float | None:
    """Seconds until a stage ends at its pace; None while that is a guess.

    >>> seconds_left(30.0, 1, 4), seconds_left(0.5, 1, 4)
    (90.0, None)
    """
    if done >= total:
        return 0.0
    return spent / done * (total - done) if spent > 1 and done > 0 else None


@dataclass
class _Stage:
    """When a stage began and was shown last, by a clock in seconds."""

    begun: float
    shown: float

    def left(self, now: float, done: int, total: int) -> str:
        """The seconds to its end at its pace, in words; nothing while that is a guess."""
        left = seconds_left(now - self.begun, done, total)
        return f", {left:.0f} s left" if left else ""


class _Told:
    """Says of each stage its beginning, its end, and in between how far it is, `every` so many seconds."""

    every = 30.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stages: dict[str, _Stage] = {}

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        now, ended = self.clock(), done >= total
        known = self.stages.get(stage)
        if known and not ended and now - known.shown < self.every:
            return
        begun = self.stages.setdefault(stage, _Stage(now, now))
        begun.shown = now
        line = f"{stage}: {done / max(total, 1):.0%}{begun.left(now, done, total)}" + (f", {note}" if note else "")
        self.say(stage, line)
        if ended:
            del self.stages[stage]
            self.end(stage)

    def say(self, _stage: str, line: str) -> None:
        raise NotImplementedError

    def end(self, _stage: str) -> None:
        """A stage has ended; one of its name that begins after it is another."""


class _Lines(_Told):
    """Progress for logs: lines on stderr."""

    def say(self, _stage: str, line: str) -> None:
        say(line)


class _Notebook(_Told):
    """Progress for notebooks: one line for each stage below the cell, which changes in its place."""

    every = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.handles: dict[str, Any] = {}
        self.reached: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        if done < self.reached.get(stage, 0) and stage in self.stages:  # one that was not ended is begun anew
            del self.stages[stage]
            self.end(stage)
        self.reached[stage] = done
        super().__call__(stage, done, total, note=note)

    def say(self, stage: str, line: str) -> None:
        from IPython.display import display

        shown = {"text/plain": line}
        if stage in self.handles:
            self.handles[stage].update(shown, raw=True)
        else:
            self.handles[stage] = display(shown, raw=True, display_id=True)

    def end(self, stage: str) -> None:
        del self.handles[stage], self.reached[stage]


def _hush_libraries() -> None:
    """transformers' own bars and advice would interleave with ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hush_kernels()
    if (logging := sys.modules.get(TRANSFORMERS_LOGGING)) is not None:
        _hush(logging)
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported(TRANSFORMERS_LOGGING, _hush))


TRANSFORMERS_LOGGING = "transformers.utils.logging"


def _hush(logging: Any) -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()


class _WhenImported(MetaPathFinder):
    """Does something to a module when it is imported: to import transformers for it would take a second of every verb."""

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        assert spec  # noqa: S101  it is being imported
        assert spec.loader  # noqa: S101
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            self.then(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def hush_kernels() -> None:
    """Libraries warn, while they are imported, of kernels that this machine has no use for."""
    import logging

    for name in ("bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
