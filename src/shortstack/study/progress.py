"""How far a study is, read from its run store and nothing else."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.records import last_line
from shortstack.runs.step_progress import StepProgress, read_progress


@dataclass(frozen=True)
class KindProgress:
    """Steps of one kind. expected: at most so many in all; seconds: of a finished one, in the mean."""

    done: int
    running: int
    failed: int
    expected: int
    seconds: float | None


@dataclass(frozen=True)
class RunningStep:
    """A step that runs: what the command would be, for how many seconds it has run, and what it told last."""

    kind: str
    command: str
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

    @property
    def done(self) -> int:
        return sum(kind.done for kind in self.kinds.values())

    @property
    def expected(self) -> int:
        """Steps at most."""
        return sum(kind.expected for kind in self.kinds.values())

    @property
    def pace(self) -> float | None:
        """Seconds from one finished step to the next, of all workers together."""
        spent = sum(kind.done * (kind.seconds or 0.0) for kind in self.kinds.values())
        return spent / self.done / max(1, self.workers) if self.done else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def study_progress(runs: str | Path) -> StudyProgress:
    """How far the study in a folder is."""
    now = time.time()
    folder = Folder(Path(runs))
    with Store.open(folder, read_only=True) as store:
        notes, counts, seconds = store.noted(), store.counts(), store.seconds()
        rows, failures, trials = store.running(), store.failures(), store.trials()
    states = Counter(trial["state"] for trial in trials)
    expected, workers = json.loads(notes.get("expected", "{}")), int(notes.get("workers", 1))
    kinds = {
        kind: _kind_progress(counts.get(kind, {}), expected.get(kind, 0), seconds.get(kind, ()))
        for kind in sorted(expected.keys() | counts.keys())
    }
    running = [
        RunningStep(row["kind"], row["command"] or "", now - row["started"], read_progress(folder.progress(row["key"])))
        for row in rows
    ]
    return StudyProgress(
        notes.get("title", ""),
        {state: states[state] for state in ("done", "running", "failed", "waiting")},
        kinds,
        running,
        [f"{row['kind']} {row['key'][:12]}: {last_line(row['error'])}" for row in failures],
        workers,
        seconds_to_go(kinds, running, workers),
        bool(notes.get("finished")),
    )


def _kind_progress(counts: Mapping[str, int], expected: int, seconds: Sequence[float]) -> KindProgress:
    done, running, failed = (counts.get(state, 0) for state in ("done", "running", "failed"))
    mean = statistics.fmean(seconds) if seconds else None
    return KindProgress(done, running, failed, max(expected, done + running + failed), mean)


def seconds_to_go(kinds: Mapping[str, KindProgress], running: Sequence[RunningStep], workers: int) -> float | None:
    """Seconds until all is done, at most: the steps left of each kind, at what one takes, shared by workers.

    A step that runs takes at least as long as its stage needs at its pace.

    >>> seconds_to_go({"heal": KindProgress(2, 1, 0, 5, 60.0)}, [RunningStep("heal", "", 20.0)], 2)
    80.0
    """
    each = {name: kind.seconds for name, kind in kinds.items()}
    left = {name: kind.expected - kind.done - kind.failed - kind.running for name, kind in kinds.items()}
    if any(each[name] is None for name in left if left[name] or kinds[name].running):
        return None
    total = sum(left[name] * (each[name] or 0.0) for name in kinds)
    for step in running:
        stage = step.told.left if step.told else 0.0
        total += max((each[step.kind] or 0.0) - step.seconds, stage, 0.0)
    return total / max(1, workers)
