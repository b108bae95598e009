"""A study's trials and steps, read from its store: opened read-only, so that a running study is never in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shortstack.errors import DataError
from shortstack.runs.folder import Folder
from shortstack.runs.store import Store

ONE_SHOT = "one-shot"  # the strategy of a trial that removes all its layers at once


@dataclass(frozen=True)
class StepRecord:
    """One call of a verb: its arguments, its result, where and how long it ran."""

    key: str
    kind: str
    state: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    started: float | None = None
    seconds: float | None = None
    host: str | None = None
    command: str | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class TrialRecord:
    """One path through the grid, and the steps it took by role; `evaluate_base` and `profile_base` are the model's own."""

    id: str
    number: int
    settings: Mapping[str, Any]
    state: str
    steps: Mapping[str, StepRecord]

    def result(self, *roles: str) -> Mapping[str, Any]:
        """Return the result of the first of these roles that is done; empty where none is."""
        step = self.step(*roles)
        return step.result if step else {}

    def step(self, *roles: str) -> StepRecord | None:
        """Find the first of these roles' steps that is done."""
        return next(
            (self.steps[role] for role in roles if role in self.steps and self.steps[role].state == "done"), None
        )


@dataclass(frozen=True)
class Conclusion:
    """The outcome of a shrink. verdict: keep it or not; answers: to prompts, of each model; command: that makes it again."""

    verdict: str
    reasons: tuple[str, ...]
    answers: tuple[Mapping[str, str], ...]
    command: str


@dataclass(frozen=True)
class Runs:
    """Everything in a store: trials in the order of the grid, steps by key.

    Of a shrink, whose report is about one trial, there is a conclusion.
    """

    name: str
    title: str
    trials: tuple[TrialRecord, ...]
    steps: Mapping[str, StepRecord]
    conclusion: Conclusion | None = None

    @property
    def failures(self) -> list[tuple[TrialRecord, list[StepRecord]]]:
        """Each failed trial with its failed steps."""
        failed = [(trial, [step for step in trial.steps.values() if step.state == "failed"]) for trial in self.trials]
        return [(trial, steps) for trial, steps in failed if steps or trial.state == "failed"]


def read(folder: str | Path) -> Runs:
    """Read all trials and steps in RUNS, as of one moment."""
    place = Folder(Path(folder))
    with Store.open(place, read_only=True) as store:
        title, rows, roles, trials = store.noted().get("title"), store.steps(), store.trial_steps(), store.trials()
    steps = {row["key"]: _checked(StepRecord, row, place) for row in rows}
    own = {
        row["id"]: {role: steps[key] for role, key in roles.get(row["id"], {}).items() if key in steps}
        for row in trials
    }
    records = (_checked(TrialRecord, {**row, "steps": own[row["id"]]}, place) for row in trials)
    name = place.root.resolve().name
    return Runs(name, title or name, tuple(records), steps)


def last_line(error: str | None) -> str:
    """Return the last line of a traceback, which says what went wrong."""
    return ((error or "").strip().splitlines() or ["no message"])[-1]


def _checked(kind: Any, stored: Any, place: Folder) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(stored)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            expected="rows that a study writes",
            fix="run the study again in another folder",
            where=place.database,
        ) from error
