"""How far a study is, read from its run store, and each step, kept beside what it writes.

A step's worker tells, and whoever waits for it or watches reads.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from shortstack.machine.files import atomic_write
from shortstack.machine.progress import Progress
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.records import last_line

PACE = 1.0  # seconds between two that are written, at least


@dataclass(frozen=True)
class KindProgress:
    """Steps of one kind. expected: at most so many in all; seconds: of a finished one, in the mean."""

    done: int
    running: int
    failed: int
    expected: int
    seconds: float | None


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


@dataclass(frozen=True)
class RunningStep:
    """A step that runs, for how many seconds it has, and what it told last."""

    kind: str
    seconds: float
    told: StepProgress | None = None


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is at one moment. eta: seconds to go at most, by finished steps; None where a kind has none."""

    title: str
    trials: Mapping[str, int]
    kinds: Mapping[str, KindProgress]
    running: Sequence[RunningStep]
    failures: Sequence[str]
    workers: int
    eta: float | None
    finished: bool


def study_progress(runs: str | Path) -> StudyProgress:
    """Read how far the study in a folder is.

    Raises:
        DataError: no study ran there.
    """
    now, folder = time.time(), Folder(Path(runs))
    with Store.open(folder, read_only=True) as store:
        notes, rows, trials = store.noted(), store.states(), store.trials()
    states = Counter(trial["state"] for trial in trials)
    expected, workers = json.loads(notes.get("expected", "{}")), int(notes.get("workers", 1))
    by_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in expected}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    kinds = {kind: _kind_progress(steps, expected.get(kind, 0)) for kind, steps in sorted(by_kind.items())}
    running = [
        RunningStep(row["kind"], now - row["started"], read_progress(folder.progress(row["key"])))
        for row in rows
        if row["state"] == "running"
    ]
    return StudyProgress(
        notes.get("title", ""),
        {state: states[state] for state in ("done", "running", "failed", "waiting")},
        kinds,
        running,
        [f"{row['kind']} {row['key'][:12]}: {last_line(row['error'])}" for row in rows if row["state"] == "failed"],
        workers,
        seconds_to_go(kinds, running, workers),
        bool(notes.get("finished")),
    )


def _kind_progress(steps: Sequence[Mapping[str, Any]], expected: int) -> KindProgress:
    states = Counter(step["state"] for step in steps)
    seconds = [step["seconds"] for step in steps if step["state"] == "done"]
    mean = statistics.fmean(seconds) if seconds else None
    return KindProgress(states["done"], states["running"], states["failed"], max(expected, len(steps)), mean)


def seconds_to_go(kinds: Mapping[str, KindProgress], running: Sequence[RunningStep], workers: int) -> float | None:
    """Estimate the seconds until all is done, at most: the steps left of each kind, at what one takes, shared by workers.

    >>> seconds_to_go({"heal": KindProgress(2, 1, 0, 5, 60.0)}, [RunningStep("heal", 20.0)], 2)
    80.0
    """
    total = 0.0
    for kind in kinds.values():
        left = kind.expected - kind.done - kind.failed
        if left and kind.seconds is None:
            return None
        total += left * (kind.seconds or 0.0)
    gone = sum(min(step.seconds, kinds[step.kind].seconds or 0.0) for step in running)
    return (total - gone) / max(1, workers)


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
