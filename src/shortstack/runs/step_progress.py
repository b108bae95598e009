"""How far a step is, kept beside what it writes: its worker tells, and whoever waits for it or watches reads."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shortstack.machine.files import atomic_write
from shortstack.machine.progress import Progress

PACE = 1.0  # seconds between two that are written, at least


@dataclass(frozen=True)
class StepProgress:
    """The stage that a step is in, how much of it is done, and what else there is to say, such as a speed.

    begun, at: when the stage began, and when this was told, in seconds since the epoch.
    """

    stage: str
    done: int
    total: int
    note: str
    begun: float
    at: float

    @property
    def left(self) -> float:
        """Seconds to the end of the stage by its pace so far; 0 where nothing of it is done yet.

        >>> StepProgress("healing", 30, 120, "", begun=100.0, at=110.0).left
        30.0
        """
        return (self.at - self.begun) / self.done * (self.total - self.done) if self.done else 0.0

    def __str__(self) -> str:
        said = f"{self.stage} {self.done:,} of {self.total:,}"
        return f"{said}, {self.note}" if self.note else said


class Keeper:
    """A progress that is told on, and kept in a file that always holds one whole of it."""

    def __init__(self, path: Path, told: Progress) -> None:
        self.path, self.told = path, told
        self.last: StepProgress | None = None
        self.written = -PACE
        path.unlink(missing_ok=True)  # of a step that was killed

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        self.told(stage, done, total, note=note)
        now = time.time()
        if self.last is None or self.last.stage != stage or done < self.last.done:
            self.last = StepProgress(stage, done, total, note, now, now)
        else:
            self.last = replace(self.last, done=done, total=total, note=note, at=now)
        if time.monotonic() - self.written >= PACE:
            self.written = time.monotonic()
            with atomic_write(self.path, durable=False) as partial:
                partial.write_text(json.dumps(asdict(self.last)), encoding="utf-8")


def read_progress(path: Path) -> StepProgress | None:
    """Read a step's last progress; None if it has reported none yet, or runs on another machine.

    A file that a stranger put there tells nothing either: this is looked at, and nothing follows from it.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return StepProgress(
            str(kept["stage"]), int(kept["done"]), int(kept["total"]), str(kept["note"]), *map(float, _times(kept))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _times(kept: dict[str, float]) -> tuple[float, float]:
    return kept["begun"], kept["at"]
