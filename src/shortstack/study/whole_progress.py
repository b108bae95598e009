"""How far all of a shrink is, in seconds: what its study says of itself, and what comes behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from shortstack.machine.progress import Progress
from shortstack.study.progress import StudyProgress, study_progress

STAGE = "shrink"
KINDS = {  # a step, in the words of somebody who waits for it
    "score": "scoring layers",
    "plan": "choosing layers",
    "prune": "cutting and repairing",
    "heal": "healing",
    "turns": "healing in turns",
    "evaluate": "measuring",
}


class WholeProgress:
    """Tells a progress the seconds that have passed, those that all takes, and what is being done.

    reckoned: seconds that all takes, before any of it is known better. after: seconds behind the study's last step.
    """

    def __init__(self, told: Progress, reckoned: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.told, self.clock, self.begun = told, clock, clock()
        self.end_at, self.after, self.behind_it = self.begun + reckoned, 0.0, False

    @property
    def left(self) -> float:
        """Seconds until all is done."""
        return max(0.0, self.end_at - self.clock())

    def before(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        """The progress of what comes before the study."""
        far = f" {done:,} of {total:,}" if total > 1 else ""
        self._tell(f"{stage}{far}{f', {note}' if note else ''}")

    def expect(self, all_seconds: float, after: float) -> None:
        """Take in what all takes, and what comes behind the study, as soon as that is known."""
        self.end_at, self.after = self.begun + all_seconds, after

    def study(self, folder: Path) -> Progress:
        """A progress for run_study(), which reads that study's own store."""

        def progress(_stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
            study = study_progress(folder)
            if study.eta is not None:
                self.end_at = self.clock() + study.eta
            self._tell(_doing(study))

        return progress

    def behind(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        """The progress of what comes behind the study."""
        if not self.behind_it:
            self.behind_it, self.end_at = True, self.clock() + self.after
        self._tell(f"{stage} {done:,} of {total:,}")

    def end(self) -> None:
        spent = max(1, round(self.clock() - self.begun))
        self.told(STAGE, spent, spent, note="")

    def _tell(self, note: str) -> None:
        spent = self.clock() - self.begun
        self.told(STAGE, round(spent), max(round(spent + self.left), round(spent) + 1), note=note)


def _doing(study: StudyProgress) -> str:
    """The step that runs, of how many, and what it told last."""
    if not study.running:
        return "between two steps"
    step = study.running[0]
    done, most = (sum(getattr(kind, name) for kind in study.kinds.values()) for name in ("done", "expected"))
    said = f"step {done + 1} of {max(most, done + 1)}, {KINDS.get(step.kind, step.kind)}"
    return f"{said}: {step.told}" if step.told else said
