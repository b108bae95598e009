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
class Kind:
    """Steps of one kind. expected: at most so many in all; seconds: of a finished one, in the mean."""

    done: int
    running: int
    failed: int
    expected: int
    seconds: float | None


@dataclass(frozen=True)
class Running:
    """A step that runs: what the command would be, and since when."""

    kind: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Frame:
    """One look at a study. eta: seconds to go at most, by finished steps of the same kind; None where there are none."""

    title: str
    trials: Mapping[str, int]
    kinds: Mapping[str, Kind]
    running: Sequence[Running]
    failures: Sequence[str]
    workers: int
    eta: float | None
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(runs: str | Path) -> Frame:
    """How far the study in a folder is.

    Raises:
        DataError: there is none.
    """
    now = time.time()
    with Store.open(Folder(Path(runs)), read_only=True) as store:
        noted, counts, seconds = store.noted(), store.counts(), store.seconds()
        rows, failures, trials = store.running(), store.failures(), store.trials()
    states = Counter(trial["state"] for trial in trials)
    expected = json.loads(noted.get("expected", "{}"))
    kinds = {
        kind: Kind(
            counts.get(kind, {}).get("done", 0),
            counts.get(kind, {}).get("running", 0),
            counts.get(kind, {}).get("failed", 0),
            max(expected.get(kind, 0), sum(counts.get(kind, {}).values())),
            statistics.fmean(seconds[kind]) if kind in seconds else None,
        )
        for kind in sorted(expected.keys() | counts.keys())
    }
    running = [Running(row["kind"], row["command"] or "", now - row["started"]) for row in rows]
    workers = int(noted.get("workers", 1))
    return Frame(
        noted.get("title", ""),
        {state: states[state] for state in ("done", "running", "failed", "waiting")},
        kinds,
        running,
        [f"{row['kind']} {row['key'][:12]}: {last_line(row['error'])}" for row in failures],
        workers,
        to_go(kinds, running, workers),
        bool(noted.get("finished")),
    )


def last_line(error: str | None) -> str:
    """Of a traceback: what it comes to."""
    return ((error or "").strip().splitlines() or ["no message"])[-1]


def to_go(kinds: Mapping[str, Kind], running: Sequence[Running], workers: int) -> float | None:
    """Seconds until all is done, at most: the steps left of each kind, at the mean of those that ended, shared by workers.

    >>> to_go({"heal": Kind(2, 1, 0, 5, 60.0)}, [Running("heal", "", 20.0)], 2)
    80.0
    """
    left = {name: kind.expected - kind.done - kind.failed for name, kind in kinds.items()}
    if any(left[name] and kind.seconds is None for name, kind in kinds.items()):
        return None
    total = sum(left[name] * (kind.seconds or 0.0) for name, kind in kinds.items())
    spent = sum(min(each.seconds, kinds[each.kind].seconds or 0.0) for each in running)
    return (total - spent) / max(1, workers)
