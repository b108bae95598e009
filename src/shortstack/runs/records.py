"""A study's trials and steps, read from its store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shortstack.errors import DataError
from shortstack.runs.folder import Folder
from shortstack.runs.store import Store


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
    versions: Mapping[str, Any] = field(default_factory=dict)
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class TrialRecord:
    """One combination of settings, and its steps by role; `evaluate_base` and `profile_base` are of the base model."""

    id: str
    number: int
    settings: Mapping[str, Any]
    state: str
    steps: Mapping[str, StepRecord]

    def result(self, *roles: str) -> Mapping[str, Any]:
        """Return the result of the first of these roles that is done; empty if none is."""
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
    """Everything in a store: trials in order, steps by key. conclusion: of a shrink, whose report is about one trial."""

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
    """Read all trials and steps of a study's folder, as of one moment.

    Raises:
        DataError: there is no run store, or it is damaged.
    """
    from pydantic import TypeAdapter

    place = Folder(Path(folder))
    with Store.open(place, read_only=True) as store:
        try:
            steps = {row["key"]: row for row in store.steps()}
            trials = [
                {**row, "steps": {role: steps[key] for role, key in row["steps"].items() if key in steps}}
                for row in store.trials()
            ]
            records = TypeAdapter(tuple[TrialRecord, ...]).validate_python(trials)
            every = TypeAdapter(dict[str, StepRecord]).validate_python(steps)
            title = str(store.noted().get("title") or "")
        except (ValueError, AttributeError) as error:  # JSON that is none, columns that are missing or of other types
            raise DataError(f"{place.database} is damaged: {error}") from error
    name = place.root.resolve().name
    return Runs(name, title or name, records, every)


def last_line(error: str | None) -> str:
    """Return the last line of a traceback, which is its message."""
    return ((error or "").strip().splitlines() or ["no message"])[-1]
