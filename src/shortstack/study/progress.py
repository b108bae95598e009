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
from shortstack.runs.step_progress import StepProgress, read_progress


@dataclass(frozen=True)
class KindProgress:
    """Steps of one kind. expected: at most so many in all; seconds: of a finished one, in the mean.

    planned: seconds of one by what was known before any ran, where somebody reckoned that.
    """

    done: int
    running: int
    failed: int
    expected: int
    seconds: float | None
    planned: float | None = None


@dataclass(frozen=True)
class RunningStep:
    """A step that runs: what the command would be, for how many seconds it has run, and what it told last."""

    kind: str
    command: str
    seconds: float
    told: StepProgress | None = None


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is at one moment.

    eta: seconds to go at most, by finished steps of the same kind, or by what was planned, and until all is done of which
    the study is a part; None where there is neither.
    """

    title: str
    trials: Mapping[str, int]
    kinds: Mapping[str, KindProgress]
    running: Sequence[RunningStep]
    failures: Sequence[str]
    workers: int
    eta: float | None
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def study_progress(runs: str | Path) -> StudyProgress:
    """How far the study in a folder is.

    Raises:
        DataError: there is none.
    """
    now = time.time()
    folder = Folder(Path(runs))
    with Store.open(folder, read_only=True) as store:
        notes, counts, seconds = store.noted(), store.counts(), store.seconds()
        rows, failures, trials = store.running(), store.failures(), store.trials()
    states = Counter(trial["state"] for trial in trials)
    expected, planned = (json.loads(notes.get(name, "{}")) for name in ("expected", "planned"))
    workers, after = int(notes.get("workers", 1)), float(json.loads(notes.get("after", "0")))
    kinds = {
        kind: _kind_progress(counts.get(kind, {}), expected.get(kind, 0), seconds.get(kind, ()), planned.get(kind))
        for kind in sorted(expected.keys() | counts.keys())
    }
    running = [
        RunningStep(row["kind"], row["command"] or "", now - row["started"], read_progress(folder.progress(row["key"])))
        for row in rows
    ]
    to_go = seconds_to_go(kinds, running, workers)
    return StudyProgress(
        notes.get("title", ""),
        {state: states[state] for state in ("done", "running", "failed", "waiting")},
        kinds,
        running,
        [f"{row['kind']} {row['key'][:12]}: {last_line(row['error'])}" for row in failures],
        workers,
        None if to_go is None else to_go + after,
        bool(notes.get("finished")),
    )


def _kind_progress(
    counts: Mapping[str, int], expected: int, seconds: Sequence[float], planned: float | None
) -> KindProgress:
    done, running, failed = (counts.get(state, 0) for state in ("done", "running", "failed"))
    mean = statistics.fmean(seconds) if seconds else None
    return KindProgress(done, running, failed, max(expected, done + running + failed), mean, planned)


def last_line(error: str | None) -> str:
    """The last line of a traceback, which says what went wrong."""
    return ((error or "").strip().splitlines() or ["no message"])[-1]


def seconds_to_go(kinds: Mapping[str, KindProgress], running: Sequence[RunningStep], workers: int) -> float | None:
    """Seconds until all is done, at most: the steps left of each kind, at what one takes, shared by workers.

    A step that runs takes at least as long as its stage needs at its pace.

    >>> seconds_to_go({"heal": KindProgress(2, 1, 0, 5, 60.0)}, [RunningStep("heal", "", 20.0)], 2)
    80.0
    """
    each = _seconds_of_one(kinds)
    left = {name: kind.expected - kind.done - kind.failed - kind.running for name, kind in kinds.items()}
    if any(each[name] is None for name in left if left[name] or kinds[name].running):
        return None
    total = sum(left[name] * (each[name] or 0.0) for name in kinds)
    for step in running:
        stage = step.told.left if step.told else 0.0
        total += max((each[step.kind] or 0.0) - step.seconds, stage, 0.0)
    return total / max(1, workers)


def _seconds_of_one(kinds: Mapping[str, KindProgress]) -> dict[str, float | None]:
    """What one step of each kind takes: what those took that ended, else what was planned, and as much longer as all were.

    What is left counts as if it took what was planned: one short step that was slow does not make all the others slow.

    >>> _seconds_of_one({"plan": KindProgress(1, 0, 0, 1, 30.0, 10.0), "heal": KindProgress(0, 0, 0, 1, None, 90.0)})
    {'plan': 30.0, 'heal': 108.0}
    """
    planned = {name: kind.planned for name, kind in kinds.items() if kind.planned is not None}
    late = sum(kinds[name].done * ((kinds[name].seconds or each) - each) for name, each in planned.items())
    all_planned = sum(kinds[name].expected * each for name, each in planned.items())
    slower = 1 + late / all_planned if all_planned else 1.0
    return {
        name: kind.seconds if kind.seconds is not None else kind.planned and kind.planned * slower
        for name, kind in kinds.items()
    }
