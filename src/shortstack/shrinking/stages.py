"""The folder of an unfinished shrink: the result of each stage, so that a killed run goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from shortstack.checkpoint import Checkpoint
from shortstack.machine.clock import Clock
from shortstack.machine.files import atomic_write, check_new, read_json, remove, rename_new, save_json, scratch_beside
from shortstack.machine.formats import duration
from shortstack.machine.progress import Progress, say

Result = TypeVar("Result")
RUN = "run.json"  # the key of the run, and the seconds it has used
EVERY = 2.0  # seconds between two notes of the seconds used


@dataclass(frozen=True)
class Stages:
    """Results of stages in `<out>.partial`, each under its name; base: the model that checkpoints among them come from."""

    folder: Path
    base: Checkpoint

    def result(self, name: str, kind: type[Result], make: Callable[[], Result]) -> Result:
        """Return a dataclass: read, or made now and kept."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            save(path, make())
        return load(path, kind)

    def checkpoint(self, name: str, make: Callable[[Path], Any]) -> Checkpoint:
        """Return a checkpoint directory: found, or made now."""
        place = self.folder / name
        if not place.exists():
            make(place)
        return self.base.derived(place)


@contextmanager
def open_stages(out: Path, base: Checkpoint, key: str, seconds: float, began: float) -> Iterator[tuple[Stages, Clock]]:
    """Open the folder of a run, and its clock: one of the same key goes on with the time that is left, another begins anew.

    The folder goes when the run has ended, also by an error; it stays where the run is killed or interrupted.
    """
    folder = out.with_name(f"{out.name}.partial")
    noted = read_json(folder / RUN) if (folder / RUN).is_file() else {}
    if folder.exists() and not noted:
        check_new(folder)  # not ours
    if noted and noted["key"] != key:
        say(f"{folder} is of another run; this one begins anew")
        remove(folder)
        noted = {}
    clock = Clock(seconds, used=noted.get("used", 0.0) + time.monotonic() - began)
    if noted:
        say(f"Resuming {out}" + (f" with {duration(clock.left)} left" if clock.left < math.inf else ""))
    else:
        with scratch_beside(folder) as scratch:  # it never is without its key
            save_json(scratch / RUN, {"key": key, "used": 0.0})
            rename_new(scratch, folder)
    try:
        yield Stages(folder, base), clock
    except Exception:
        remove(folder)
        raise
    except BaseException:
        save_json(folder / RUN, {"key": key, "used": clock.used})
        raise
    remove(folder)


class TimedProgress:
    """Progress that notes the seconds used in the folder of the run, and shows how many are left."""

    def __init__(self, progress: Progress, clock: Clock, stages: Stages) -> None:
        self.progress, self.clock, self.path, self.noted = progress, clock, stages.folder / RUN, 0.0

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        used = self.clock.used
        if used - self.noted > EVERY:
            self.noted = used
            save_json(self.path, {**read_json(self.path), "used": used})
        left = f"{duration(self.clock.left)} left" if self.clock.left < math.inf else ""
        self.progress(stage, done, total, note=", ".join(filter(None, (note, left))))


def save(path: Path, result: Any) -> None:
    """Write a dataclass as JSON; NaN stays NaN."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(asdict(result), default=str), encoding="utf-8")


def load(path: Path, kind: type[Result]) -> Result:
    """Read a dataclass that save() wrote."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(path.read_bytes())
