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
from shortstack.runs.store import Folder


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
    """A step that runs: what the command would be, and for how many seconds it has run."""

    kind: str
    command: str
    seconds: float


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is at one moment.

    eta: seconds to go at most, by finished steps of the same kind; None where there are none.
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
    with Store.open(Folder(Path(runs)), read_only=True) as store:
        notes, counts, seconds = store.noted(), store.counts(), store.seconds()
        rows, failures, trials = store.running(), store.failures(), store.trials()
    states = Counter(trial["state"] for trial in trials)
    expected, workers = json.loads(notes.get("expected", "{}")), int(notes.get("workers", 1))
    kinds = {
        kind: _kind_progress(counts.get(kind, {}), expected.get(kind, 0), seconds.get(kind, ()))
        for kind in sorted(expected.keys() | counts.keys())
    }
    running = [RunningStep(row["kind"], row["command"] or "", now - row["started"]) for row in rows]
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


def last_line(error: str | None) -> str:
    """The last line of a traceback, which says what went wrong."""
    return ((error or "").strip().splitlines() or ["no message"])[-1]


def seconds_to_go(kinds: Mapping[str, KindProgress], running: Sequence[RunningStep], workers: int) -> float | None:
    """Seconds until all is done, at most: the steps left of each kind, at the mean of those that ended, shared by workers.

    >>> seconds_to_go({"heal": KindProgress(2, 1, 0, 5, 60.0)}, [RunningStep("heal", "", 20.0)], 2)
    80.0
    """
    left = {name: kind.expected - kind.done - kind.failed for name, kind in kinds.items()}
    if any(left[name] and kind.seconds is None for name, kind in kinds.items()):
        return None
    total = sum(left[name] * (kind.seconds or 0.0) for name, kind in kinds.items())
    spent = sum(min(each.seconds, kinds[each.kind].seconds or 0.0) for each in running)
    return (total - spent) / max(1, workers)
