"""Results of the trials: one for each setting, its seeds taken together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from shortstack.errors import DataError
from shortstack.evaluation.suites import SHARES
from shortstack.evaluation.task_results import weighted
from shortstack.report.labels import PLAIN
from shortstack.runs.records import StepRecord, TrialRecord

AVERAGE = "average"
BASE, PRUNED, HEALED = "evaluate_base", "evaluate_pruned", "evaluate_healed"  # the roles of evaluations


@dataclass(frozen=True)
class Measure:
    """A number with its standard error, and the steps it comes from.

    kind: share (0 to 1), perplexity, or number. loss: of a perplexity, in nats per token, with its standard error.
    outcomes: by document (of a probe by item, of a text by window), higher being better, where they were kept.
    parts: the measures that an average is the mean of.
    by_seed: what is compared of each seed, where there are several. chance: what guessing gets, where that is known.
    """

    kind: str
    value: float
    stderr: float | None = None
    steps: tuple[str, ...] = ()
    higher: bool = True
    n: int | None = None
    loss: float = math.nan
    loss_stderr: float | None = None
    outcomes: Mapping[str, float] | None = field(default=None, repr=False)
    parts: tuple[Measure, ...] = field(default=(), repr=False)
    by_seed: tuple[float, ...] = field(default=(), repr=False)
    chance: float | None = None

    @property
    def seed_variance(self) -> float:
        """The variance of the seeds' mean; 0 of a single seed, of which nobody knows."""
        return float(np.var(self.by_seed, ddof=1)) / len(self.by_seed) if len(self.by_seed) > 1 else 0.0

    @property
    def document_stderr(self) -> float | None:
        """The standard error of what is compared that the choice of documents makes, without that of seeds."""
        _, stderr = self.compared
        return None if stderr is None else math.sqrt(max(0.0, stderr**2 - self.seed_variance))

    @property
    def compared(self) -> tuple[float, float | None]:
        """The number that is compared with others, and its standard error: of a perplexity its loss."""
        return (self.loss, self.loss_stderr) if self.kind == "perplexity" else (self.value, self.stderr)

    @property
    def better(self) -> float:
        """A number that is higher where the model is better; NaN where there is none."""
        return self.value if self.higher else -self.value

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
    trials: tuple[TrialRecord, ...]
    role: str
    measures: Mapping[str, Measure]

    @property
    def model(self) -> str:
        return self.factors["model"]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of its trials."""
        return tuple(trial.number for trial in self.trials)

    @property
    def seeds(self) -> int:
        """How many seeds it is the mean of: one where nothing was drawn, so that all trials share every step."""
        drawn = {frozenset(step.key for step in trial.steps.values()) for trial in self.trials}
        return len(self.trials) if len(drawn) > 1 else 1

    @property
    def removed(self) -> int | None:
        """How many layers are gone, where a plan says so."""
        return next((len(plan["removed"]) for plan in self.plans if "removed" in plan), None)

    @property
    def plans(self) -> list[Mapping[str, Any]]:
        """The plan of each trial; where pruning and healing took turns, healing has the plan of all turns."""
        return [trial.result("heal").get("plan") or trial.result("plan", "prune") for trial in self.trials]

    def step(self, *roles: str) -> StepRecord | None:
        """Find the step of these roles in the first trial that has one done."""
        return next((step for trial in self.trials if (step := trial.step(*roles))), None)

    @property
    def evaluation(self) -> StepRecord | None:
        """The first trial's evaluation that the measures are from."""
        return self.step(self.role)

    def seconds(self, *roles: str) -> float | None:
        """Average over the seeds the time that the steps of these roles took."""
        steps = [[step for role in roles if (step := trial.step(role))] for trial in self.trials]
        times = [sum(step.seconds or 0.0 for step in taken) for taken in steps if taken]
        return sum(times) / len(times) if times else None


Described = Sequence[tuple[TrialRecord, Mapping[str, str]]]  # trials with their factors in words


def results(trials: Described) -> list[Result]:
    """Return the result of each setting, after healing where it heals; settings without a measurement are left out."""
    grouped: dict[tuple[tuple[str, str], ...], list[TrialRecord]] = {}
    for trial, factors in trials:
        if trial.step(_role(factors)):
            grouped.setdefault(tuple(factors.items()), []).append(trial)
    measured = [_result(dict(key), members, _role(dict(key))) for key, members in grouped.items()]
    tasks = share_tasks(measured)
    return [_averaged(result, tasks) for result in measured]


def before_healing(result: Result, tasks: Sequence[str]) -> Result | None:
    """Return the same setting as it was pruned, not healed."""
    trials = [trial for trial in result.trials if trial.step(PRUNED)]
    if not trials or result.role != HEALED:
        return None
    factors = {**result.factors, "heal": PLAIN["heal"], "data": PLAIN["data"]}
    return _averaged(_result(factors, trials, PRUNED), tasks)


def unpruned(trials: Described, tasks: Sequence[str]) -> dict[str, Result]:
    """Return the unpruned model's result, by model."""
    bases: dict[str, Result] = {}
    for trial, factors in trials:
        model = factors["model"]
        if model not in bases and trial.step(BASE):
            bases[model] = _averaged(_result(dict.fromkeys(factors, "") | {"model": model}, [trial], BASE), tasks)
    return bases


def share_tasks(measured: Iterable[Result]) -> list[str]:
    """List the columns that an average is over: tasks whose value is a share of documents."""
    columns = [pair for result in measured for pair in result.measures.items()]
    return list(
        dict.fromkeys(name for name, measure in columns if name.startswith("task:") and measure.kind == "share")
    )


def _averaged(result: Result, tasks: Sequence[str]) -> Result:
    """Add the plain mean of the tasks, where every one of them was measured."""
    parts = tuple(result.measures[name] for name in tasks if name in result.measures)
    if len(parts) < 2 or len(parts) < len(tasks):
        return result
    return replace(result, measures={AVERAGE: mean(parts), **result.measures})


def mean(parts: Sequence[Measure]) -> Measure:
    """Take the plain mean of shares. They are independent of each other, but a seed is the same in all of them."""
    value = sum(part.value for part in parts) / len(parts)
    steps = tuple(dict.fromkeys(step for part in parts for step in part.steps))
    seeds, chance = _mean_by_seed(parts), _mean_chance(parts)
    average = Measure("share", value, None, steps, parts=tuple(parts), by_seed=seeds, chance=chance)
    errors = [part.document_stderr for part in parts if part.document_stderr is not None]
    if len(errors) < len(parts):
        return average
    documents = sum(error**2 for error in errors) / len(parts) ** 2
    return replace(average, stderr=math.sqrt(documents + average.seed_variance))


def _mean_chance(parts: Sequence[Measure]) -> float | None:
    """Return the mean chance level; None unless it is known of each."""
    known = [part.chance for part in parts if part.chance is not None]
    return sum(known) / len(known) if len(known) == len(parts) else None


def _mean_by_seed(parts: Sequence[Measure]) -> tuple[float, ...]:
    """Average each seed; none where the parts are not of the same seeds."""
    counts = {len(part.by_seed) for part in parts}
    return tuple(map(float, np.mean([part.by_seed for part in parts], axis=0))) if len(counts) == 1 else ()


def _role(factors: Mapping[str, str]) -> str:
    """Choose the evaluation that a setting is about: a trial that is yet to heal, or failed to, has nothing to show."""
    return PRUNED if factors["heal"] == PLAIN["heal"] else HEALED


def _result(factors: Mapping[str, str], trials: Sequence[TrialRecord], role: str) -> Result:
    columns: dict[str, list[Measure]] = {}
    for step in filter(None, (trial.step(role) for trial in trials)):
        for name, measure in measures(step).items():
            columns.setdefault(name, []).append(measure)
    return Result(factors, tuple(trials), role, {name: _seeds_mean(seeds) for name, seeds in columns.items()})


def _seeds_mean(seeds: Sequence[Measure]) -> Measure:
    """Average over seeds; the variance is that of the documents and that of the seeds' mean."""
    first = seeds[0]
    if len({measure.steps for measure in seeds}) == 1:
        return first
    values, losses = [measure.value for measure in seeds], [measure.loss for measure in seeds]
    return replace(
        first,
        value=float(np.mean(values)),
        stderr=_seeds_stderr([measure.stderr for measure in seeds], values),
        steps=tuple(dict.fromkeys(step for measure in seeds for step in measure.steps)),
        loss=float(np.mean(losses)),
        loss_stderr=_seeds_stderr([measure.loss_stderr for measure in seeds], losses),
        outcomes=_mean_outcomes(seeds),
        by_seed=tuple(losses if first.kind == "perplexity" else values),
    )


def _seeds_stderr(errors: Sequence[float | None], values: Sequence[float]) -> float | None:
    squares = [error**2 for error in errors if error is not None]
    if len(squares) < len(errors) or not all(map(math.isfinite, values)):
        return None
    return math.sqrt(float(np.mean(squares)) + float(np.var(values, ddof=1)) / len(values))


def _mean_outcomes(seeds: Sequence[Measure]) -> dict[str, float] | None:
    outcomes = [measure.outcomes for measure in seeds if measure.outcomes]
    if len(outcomes) < len(seeds) or any(by_document.keys() != outcomes[0].keys() for by_document in outcomes):
        return None
    return {document: float(np.mean([by_document[document] for by_document in outcomes])) for document in outcomes[0]}


def measures(step: StepRecord) -> dict[str, Measure]:
    """Read every number of an evaluation, by column: `task:NAME`, `perplexity:NAME`, `probe:NAME`."""
    kinds = {"task": ("tasks", _task), "perplexity": ("perplexity", _perplexity), "probe": ("probes", _probe)}
    return {
        f"{kind}:{name}": read(data, step)
        for kind, (key, read) in kinds.items()
        for name, data in (step.result.get(key) or {}).items()
    }


def _task(data: Mapping[str, Any], step: StepRecord) -> Measure:
    return Measure(
        "share" if data["metric"] in SHARES else "number",
        _number(data.get("value")),
        _stderr(data.get("stderr")),
        (step.key,),
        higher=data["higher_is_better"],
        n=data.get("n"),
        outcomes=_outcomes(data, step),
        chance=data.get("chance"),
    )


def _outcomes(data: Mapping[str, Any], step: StepRecord) -> dict[str, float] | None:
    """Read the outcome on each document or item; None where they were not kept, or one is no number.

    Their mean is the value: where each task of a group counts the same, they are weighted so.
    """
    values = [_number(value) for value in data.get("outcomes") or []]
    documents = data.get("documents") or []
    if len(documents) != len(values):
        expected, numbers = "an outcome of each document", f"{len(values)} of {len(documents)}"
        raise DataError(numbers, expected=expected, fix="run it again", where=f"step {step.key}")
    if not values or not all(map(math.isfinite, values)):
        return None
    return dict(zip(map(str, documents), weighted(documents, values, macro=data.get("macro", False)), strict=True))


def _perplexity(data: Mapping[str, Any], step: StepRecord) -> Measure:
    """Read a perplexity. Infinities are null in JSON: beside a finite loss it was too large for a float."""
    value, loss, spread = _number(data.get("value")), _number(data.get("loss")), _stderr(data.get("loss_stderr"))
    if math.isnan(value) and not math.isnan(loss):
        value = math.inf
    if math.isnan(loss) and value > 0:
        loss = math.log(value)
    stderr = value * spread if spread is not None and math.isfinite(value) else None
    read, losses = (data.get("windows") or {}).get("sha256"), data.get("window_losses") or []
    windows = {f"{read} {place}": -_number(window_loss) for place, window_loss in enumerate(losses)}
    outcomes = windows if windows and all(map(math.isfinite, windows.values())) else None
    return Measure("perplexity", value, stderr, (step.key,), False, data.get("tokens"), loss, spread, outcomes)


def _probe(data: Mapping[str, Any], step: StepRecord) -> Measure:
    value, stderr, chance = _number(data.get("value")), _stderr(data.get("stderr")), data.get("chance")
    return Measure("share", value, stderr, (step.key,), n=data.get("n"), outcomes=_outcomes(data, step), chance=chance)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _stderr(value: Any) -> float | None:
    """Read a standard error; None where there is none, which JSON has as null and Python as NaN."""
    return None if value is None or not math.isfinite(value) else float(value)
