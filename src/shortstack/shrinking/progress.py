"""How far all of a shrink is, by its clock; the seconds used lie in its folder, so that a killed run has the rest."""

from __future__ import annotations

import json
import math
from pathlib import Path

from shortstack.machine.clock import Clock
from shortstack.machine.files import save_json
from shortstack.machine.progress import Progress

STAGE = "shrink"
EVERY = 2.0  # seconds between two notes of what is used


class ClockProgress:
    """One line: the seconds used of all, and what is being done."""

    def __init__(self, told: Progress, clock: Clock, file: Path) -> None:
        self.told, self.clock, self.file, self.noted = told, clock, file, 0.0

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        used = self.clock.used
        far = f", {done / total:.0%}" if total > 1 else ""
        self.told(STAGE, round(used), self._all(used), note=f"{stage}{far}{f', {note}' if note else ''}")
        if used - self.noted > EVERY:
            self.keep()

    def keep(self) -> None:
        self.noted = self.clock.used
        save_json(self.file, {"used": self.noted})

    def end(self) -> None:
        used = max(1, round(self.clock.used))
        self.told(STAGE, used, used)

    def _all(self, used: float) -> int:
        return max(math.ceil(self.clock.seconds), round(used) + 1)


def clock_of(seconds: float, file: Path, *, before: float) -> Clock:
    """The clock of a run, which goes on where it was left. before: seconds of this call that have passed."""
    used = json.loads(file.read_text(encoding="utf-8"))["used"] if file.exists() else 0.0
    return Clock(seconds, used=used + before)
