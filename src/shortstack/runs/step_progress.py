"""How far a step is, kept beside what it writes: its worker tells, and whoever waits for it or watches reads."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from shortstack.machine.files import atomic_write
from shortstack.machine.progress import Progress

PACE = 1.0  # seconds between two that are written, at least


@dataclass(frozen=True)
class StepProgress:
    """The stage that a step is in, how much of it is done, and what else there is to say, such as a speed."""

    stage: str
    done: int
    total: int
    note: str = ""

    def __str__(self) -> str:
        said = f"{self.stage} {self.done:,} of {self.total:,}"
        return f"{said}, {self.note}" if self.note else said


def keeping(path: Path, progress: Progress) -> Progress:
    """Make a progress that is told on, and kept in a file that always holds one whole of it."""
    path.unlink(missing_ok=True)  # of a step that was killed
    written = -math.inf

    def keep(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        nonlocal written
        progress(stage, done, total, note=note)
        if time.monotonic() - written >= PACE:
            written = time.monotonic()
            with atomic_write(path, durable=False) as partial:
                partial.write_text(json.dumps(asdict(StepProgress(stage, done, total, note))), encoding="utf-8")

    return keep


def read_progress(path: Path) -> StepProgress | None:
    """Read a step's last progress; None if it has reported none yet, or runs on another machine.

    A file that a stranger put there tells nothing either: this is looked at, and nothing follows from it.
    """
    try:
        return TypeAdapter(StepProgress).validate_json(path.read_bytes())
    except (OSError, ValueError):  # pydantic's errors are of the latter kind
        return None
