"""What the trials measured: a row for each setting, the seeds of one setting taken together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from shortstack.errors import DataError
from shortstack.report.labels import NONE, factors
from shortstack.runs import Runs
from shortstack.runs.records import Step, Trial

AVERAGE = "average"
BASE, PRUNED, HEALED = "evaluate_base", "evaluate_pruned", "evaluate_healed"  # the roles of evaluations


@dataclass(frozen=True)
class Measure:
    """A number with its standard error, and the steps it comes from.

    kind: share (0 to 1), perplexity, or number. level, spread: what is compared and its standard error; of a perplexity
    the loss. outcomes: by document, where they were kept. parts: of an average, what was averaged.
    """

    kind: str
    value: float
    stderr: float | None = None
    steps: tuple[str, ...] = ()
    higher: bool = True
    level: float = math.nan
    spread: float | None = None
    n: int | None = None
    outcomes: Mapping[str, float] | None = field(default=None, repr=False)
    parts: tuple[Measure, ...] = field(default=(), repr=False)

    @property
    def better(self) -> float:
        """A number that is higher where the model is better; NaN where there is none."""
        found = self.level if math.isnan(self.value) or math.isinf(self.value) else self.value
        return found if self.higher else -found

    @cached_property
    def documents(self) -> Any:
        """The outcomes as an array, in the order of the documents' names."""
        return np.array([value for _, value in sorted((self.outcomes or {}).items())])


@dataclass(frozen=True)
class Result:
    """The trials that differ in nothing but the seed, and what they measured together, by column.

    role: of the evaluation that the measures are from.
    """

    factors: Mapping[str, str]
    trials: tuple[Trial, ...]
    role: str
    measures: Mapping[str, Measure]

    @property
    def model(self) -> str:
        return self.factors["model"]

    @property
    def removed(self) -> int | None:
        """How many layers are gone, where a plan says so."""
        return next((len(plan["removed"]) for plan in self.plans if "removed" in plan), None)

    @property
    def plans(self) -> list[Mapping[str, Any]]:
        """What each trial removed; where pruning and healing took turns, the turns say it."""
        return [trial.result("heal").get("plan") or trial.result("plan", "prune") for trial in self.trials]

    @property
    def judged(self) -> Step | None:
        """The first trial's evaluation that the measures are from."""
        return self.first(self.role)

    def first(self, *roles: str) -> Step | None:
        """The step of these roles in the first trial that has one done."""
        return next((step for trial in self.trials if (step := trial.step(*roles))), None)

    def seconds(self, *roles: str) -> float | None:
        """Mean over the seeds of the time that the steps of these roles took."""
        times = [
            sum(step.seconds or 0.0 for role in roles if (step := trial.step(role)))
            for trial in self.trials
            if trial.step(*roles)
        ]
        return sum(times) / len(times) if times else None


def results(runs: Runs) -> list[Result]:
    """What was measured of each setting: after healing where it heals. What measured nothing yet is left out."""
    grouped: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
    for trial, known in zip(runs.trials, factors([trial.settings for trial in runs.trials]), strict=True):
        if trial.step(_role(known)):
            grouped.setdefault(tuple(known.items()), []).append(trial)
    return _with_averages([_result(dict(key), trials, _role(dict(key))) for key, trials in grouped.items()])


def before_healing(result: Result, tasks: Sequence[str]) -> Result | None:
    """The same setting as it was pruned, not healed."""
    trials = [trial for trial in result.trials if trial.step(PRUNED)]
    if not trials or result.factors["heal"] == NONE["heal"]:
        return None
    plain = {**result.factors, "heal": NONE["heal"], "data": NONE["data"]}
    return _averaged(_result(plain, trials, PRUNED), tasks)


def unpruned(runs: Runs, tasks: Sequence[str]) -> dict[str, Result]:
    """The unpruned model's row, by model."""
    found: dict[str, Result] = {}
    for trial, known in zip(runs.trials, factors([trial.settings for trial in runs.trials]), strict=True):
        if known["model"] not in found and trial.step(BASE):
            row = dict.fromkeys(known, "") | {"model": known["model"]}
            found[known["model"]] = _averaged(_result(row, [trial], BASE), tasks)
    return found


def share_tasks(found: Iterable[Result]) -> list[str]:
    """The columns that an average is over: tasks whose value is a share of documents."""
    names: dict[str, None] = {}
    for result in found:
        for name, measure in result.measures.items():
            if name.startswith("task:") and measure.kind == "share":
                names.setdefault(name, None)
    return list(names)


def _with_averages(found: list[Result]) -> list[Result]:
    tasks = share_tasks(found)
    return [_averaged(result, tasks) for result in found]


def _averaged(result: Result, tasks: Sequence[str]) -> Result:
    """With the plain mean of the tasks, where every one of them was measured."""
    parts = tuple(result.measures[name] for name in tasks if name in result.measures)
    if len(parts) < 2 or len(parts) < len(tasks):
        return result
    errors = [part.stderr for part in parts]
    known = [error for error in errors if error is not None]
    stderr = math.sqrt(sum(error**2 for error in known)) / len(parts) if len(known) == len(parts) else None
    value = sum(part.value for part in parts) / len(parts)
    steps = tuple(dict.fromkeys(step for part in parts for step in part.steps))
    average = Measure("share", value, stderr, steps, level=value, spread=stderr, parts=parts)
    return replace(result, measures={AVERAGE: average, **result.measures})


def _role(known: Mapping[str, str]) -> str:
    """The evaluation that a setting is about: a trial that is yet to heal, or failed to, has nothing to show."""
    return PRUNED if known["heal"] == NONE["heal"] else HEALED


def _result(known: Mapping[str, str], trials: Sequence[Trial], role: str) -> Result:
    columns: dict[str, list[Measure]] = {}
    for trial in trials:
        step = trial.step(role)
        for name, measure in (measures(step) if step else {}).items():
            columns.setdefault(name, []).append(measure)
    return Result(known, tuple(trials), role, {name: _together(found) for name, found in columns.items()})


def _together(found: list[Measure]) -> Measure:
    """The mean over seeds; its variance is that of the documents and that of the seeds' mean."""
    first = found[0]
    if len({each.steps for each in found}) == 1:
        return first
    values, levels = [each.value for each in found], [each.level for each in found]
    return Measure(
        first.kind,
        float(np.mean(values)),
        _seeds_error([each.stderr for each in found], values),
        tuple(dict.fromkeys(step for each in found for step in each.steps)),
        first.higher,
        float(np.mean(levels)),
        _seeds_error([each.spread for each in found], levels),
        first.n,
        _mean_outcomes(found),
    )


def _seeds_error(errors: Sequence[float | None], values: Sequence[float]) -> float | None:
    known = [error for error in errors if error is not None]
    if len(known) < len(errors) or not all(map(math.isfinite, values)):
        return None
    return math.sqrt(float(np.mean(np.square(known))) + float(np.var(values, ddof=1)) / len(values))


def _mean_outcomes(found: Sequence[Measure]) -> dict[str, float] | None:
    all_outcomes = [each.outcomes for each in found if each.outcomes]
    if len(all_outcomes) < len(found) or any(each.keys() != all_outcomes[0].keys() for each in all_outcomes):
        return None
    return {document: float(np.mean([each[document] for each in all_outcomes])) for document in all_outcomes[0]}


def measures(step: Step) -> dict[str, Measure]:
    """Every number of an evaluation, by column: `task:NAME`, `perplexity:NAME`, `probe:NAME`."""
    found = {f"task:{name}": _task(data, step) for name, data in (step.result.get("tasks") or {}).items()}
    found |= {f"perplexity:{name}": _perplexity(data, step) for name, data in _texts(step).items()}
    return found | {f"probe:{name}": _probe(data, step) for name, data in (step.result.get("probes") or {}).items()}


def _texts(step: Step) -> Mapping[str, Any]:
    return step.result.get("perplexity") or {}


def _task(data: Mapping[str, Any], step: Step) -> Measure:
    value, stderr = _number(data.get("value")), _known(data.get("stderr"))
    share = "perplexity" not in str(data.get("metric", "")) and not value > 1
    values = data.get("outcomes") or []
    documents = data.get("documents") or range(len(values))
    if len(documents) != len(values):
        raise DataError(
            f"step {step.key}",
            expected="an outcome of each document",
            found=f"{len(values)} of {len(documents)}",
            fix="run it again",
        )
    outcomes = {str(name): _number(each) for name, each in zip(documents, values, strict=True)}
    return Measure(
        "share" if share else "number",
        value,
        stderr,
        (step.key,),
        data.get("higher_is_better", share),
        value,
        stderr,
        data.get("n"),
        outcomes if outcomes and all(map(math.isfinite, outcomes.values())) else None,
    )


def _perplexity(data: Mapping[str, Any], step: Step) -> Measure:
    """Infinities are null in JSON: a perplexity that is null beside a finite loss was too large for a float."""
    loss, spread = _number(data.get("loss")), _known(data.get("loss_stderr"))
    value = _number(data.get("value"))
    if math.isnan(value) and not math.isnan(loss):
        value = math.inf
    if math.isnan(loss) and value > 0:
        loss = math.log(value)
    stderr = value * spread if spread is not None and math.isfinite(value) else None
    return Measure("perplexity", value, stderr, (step.key,), False, loss, spread, data.get("tokens"))


def _probe(data: Mapping[str, Any], step: Step) -> Measure:
    value, stderr = _number(data.get("value")), _known(data.get("stderr"))
    return Measure("share", value, stderr, (step.key,), True, value, stderr, data.get("n"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _known(value: Any) -> float | None:
    """A standard error; None where there is none, which JSON has as null and Python as NaN."""
    return None if value is None or not math.isfinite(value) else float(value)
