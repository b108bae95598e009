"""Measures of trials, and which differences between them are more than chance.

Differences are paired by document where outcomes were kept, else from standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from shortstack.errors import DataError
from shortstack.evaluation import paired
from shortstack.evaluation.suites import PERPLEXITIES, SHARES
from shortstack.machine.formats import shown
from shortstack.machine.numbers import perplexity
from shortstack.runs.records import StepRecord

LEVEL = 0.05
McNEMAR, PAIRED, UNPAIRED = "McNemar's exact test", "differences on the same documents", "standard errors alone"
SAME, UNKNOWN = "the same measurement", "no standard errors"
UNITS = {"share": "points", "perplexity": "times"}  # of differences, by kind


@dataclass(frozen=True)
class Measure:
    """A number with its standard error, and the steps it comes from.

    kind: share (0 to 1), perplexity, or number. loss: of a perplexity, in nats per token, with its standard error.
    outcomes: by document (of a probe by item, of a text by window), higher being better, where they were kept.
    parts: the measures that an average is the mean of, or, of a group whose tasks count alike, its tasks in those outcomes.
    by_seed: what is compared of each seed, where there are several. chance: what guessing gets, where that is known.
    unit: of an outcome, where it is not that of the value.
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
    unit: str = ""

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


def seeds_mean(seeds: Sequence[Measure]) -> Measure:
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
        parts=_mean_parts([measure.parts for measure in seeds]),
        by_seed=tuple(losses if first.kind == "perplexity" else values),
    )


def _mean_parts(parts: Sequence[tuple[Measure, ...]]) -> tuple[Measure, ...]:
    """Average each part over seeds; none where not all seeds have them."""
    return tuple(map(seeds_mean, zip(*parts, strict=True))) if len(set(map(len, parts))) == 1 else ()


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


# Measures of an evaluation


def measures(step: StepRecord) -> dict[str, Measure]:
    """Read every number of an evaluation, by column: `task:NAME`, `perplexity:NAME`, `probe:NAME`."""
    kinds = {"task": ("tasks", _task), "perplexity": ("perplexity", _perplexity), "probe": ("probes", _probe)}
    return {
        f"{kind}:{name}": read(data, step)
        for kind, (key, read) in kinds.items()
        for name, data in (step.result.get(key) or {}).items()
    }


def _task(data: Mapping[str, Any], step: StepRecord) -> Measure:
    outcomes = _outcomes(data, step)
    return Measure(
        "share" if data["metric"] in SHARES else "number",
        _number(data.get("value")),
        _stderr(data.get("stderr")),
        (step.key,),
        higher=data["higher_is_better"],
        n=data.get("n"),
        outcomes=None if data.get("macro") else outcomes,
        parts=_of_tasks(outcomes, step) if outcomes and data.get("macro") else (),
        chance=data.get("chance"),
        unit=f"nats per {PERPLEXITIES[data['metric']]}" if data["metric"] in PERPLEXITIES else "",
    )


def _probe(data: Mapping[str, Any], step: StepRecord) -> Measure:
    return _task({"metric": "acc", "higher_is_better": True, **data}, step)


def _outcomes(data: Mapping[str, Any], step: StepRecord) -> dict[str, float] | None:
    """Read the outcome on each document or item; None where they were not kept, or one is no number."""
    values = [_number(value) for value in data.get("outcomes") or []]
    documents = data.get("documents") or []
    if len(documents) != len(values):
        expected, numbers = "an outcome of each document", f"{len(values)} of {len(documents)}"
        raise DataError(numbers, expected=expected, fix="run it again", where=f"step {step.key}")
    if not values or not all(map(math.isfinite, values)):
        return None
    return dict(zip(map(str, documents), values, strict=True))


def _of_tasks(outcomes: Mapping[str, float], step: StepRecord) -> tuple[Measure, ...]:
    """Measure each task of a group by its outcomes alone; none of them where one has a single document."""
    values = paired.Outcomes(tuple(outcomes), tuple(outcomes.values()), macro=True)
    parts = []
    for _, places in sorted(values.by_task().items()):
        part = {values.documents[place]: values.values[place] for place in places}
        stderr = paired.mean_stderr(np.array([*part.values()])) if len(part) > 1 else None
        parts.append(Measure("number", float(np.mean([*part.values()])), stderr, (step.key,), outcomes=part))
    return tuple(parts) if all(part.stderr is not None for part in parts) else ()


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


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _stderr(value: Any) -> float | None:
    """Read a standard error; None where there is none, which JSON has as null and Python as NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


# Differences


@dataclass(frozen=True)
class Difference:
    """One measure minus another, in the units that are compared (of perplexities the loss), and as people read it.

    p: two-sided, None where it is unknown; how: the test that it is from. freedom: degrees of freedom of the standard error.
    kind: of the measures. unit: of the change, where the kind does not say it.
    """

    value: float
    stderr: float | None
    p: float | None
    how: str
    freedom: float = math.inf
    kind: str = "number"
    unit: str = ""

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < LEVEL

    @property
    def worse(self) -> bool:
        """Whether it is below 0, beyond chance."""
        return self.significant and self.value < 0

    @property
    def change(self) -> float:
        """The difference as people read it: of a perplexity a factor."""
        return perplexity(-self.value) if self.kind == "perplexity" else self.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of where the change may lie, by Student's law; None where nothing is known of how far it spreads."""
        if self.stderr is None or not math.isfinite(self.value):
            return None
        low, high = paired.students_interval(self.value, self.stderr, self.freedom)
        return (perplexity(-high), perplexity(-low)) if self.kind == "perplexity" else (low, high)

    @property
    def form(self) -> str:
        """The kind of the change, as formats.shown() has it."""
        if self.kind == "perplexity":
            return "ratio" if self.change < 100 else "number"
        return "points" if self.kind == "share" else "difference"

    @property
    def text(self) -> str:
        return f"{shown(self.change, self.form)} {self.unit or UNITS.get(self.kind, '')}".rstrip()

    @property
    def within(self) -> str:
        """The interval in words; empty where it is unknown."""
        return f"95% interval {shown(self.interval, self.form)}" if self.interval else ""

    def said(self, where: str = "", *, than: str = "") -> str:
        """Say it as a verb: is 5.0 points worse than the unpruned model, has 1.2 times its perplexity."""
        within = f" ({self.within})" if self.within else ""
        if self.kind == "perplexity":
            return f"has {self.text} the perplexity{f' of {than}' if than else ''}{within}"
        how = "better" if self.value > 0 else "worse" if self.value < 0 else "apart"
        size = replace(self, value=abs(self.value)).text.lstrip("+")
        return f"is {size} {how}{f' on {where}' if where else ''}{f' than {than}' if than else ''}{within}"


def difference(ours: Measure, theirs: Measure) -> Difference:
    """Return how much better `ours` is: above 0 where it is better, of a perplexity too."""
    found = _with_seeds(_on_documents(ours, theirs), ours, theirs)
    return replace(found, kind=ours.kind, unit=ours.unit if found.how.startswith(PAIRED) else "")


def _on_documents(ours: Measure, theirs: Measure) -> Difference:
    """Take the difference, where the choice of documents alone is chance."""
    if ours.steps == theirs.steps:
        return Difference(0.0, 0.0, 1.0, SAME)
    if ours.parts and len(ours.parts) == len(theirs.parts):
        return _between_averages([_on_documents(a, b) for a, b in zip(ours.parts, theirs.parts, strict=True)])
    if ours.outcomes and theirs.outcomes and ours.outcomes.keys() == theirs.outcomes.keys() and len(ours.outcomes) > 1:
        return _paired(ours.documents, theirs.documents)
    (level, _), (other, _) = ours.compared, theirs.compared
    value = (level - other) * (1 if ours.higher else -1)
    spread, other_spread = ours.document_stderr, theirs.document_stderr
    alike = value and 0 in (spread, other_spread) and not (ours.seed_variance or theirs.seed_variance)
    if spread is None or other_spread is None or alike:  # equal values tell no spread
        return Difference(value, None, None, UNKNOWN)
    return _tested(value, math.hypot(spread, other_spread), math.inf, UNPAIRED)


def _with_seeds(unseeded: Difference, ours: Measure, theirs: Measure) -> Difference:
    """Count what a seed changes as chance, too: Welch's test, since few seeds say little of their spread."""
    several = [measure for measure in (ours, theirs) if measure.seed_variance]
    if not several or unseeded.stderr is None or unseeded.how == SAME:
        return unseeded
    variances = [(unseeded.stderr**2, unseeded.freedom)]
    variances += [(measure.seed_variance, len(measure.by_seed) - 1.0) for measure in several]
    return _tested(unseeded.value, *paired.error_of_sum(variances), f"{unseeded.how}, with the spread of seeds")


def _paired(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    how = McNEMAR if paired.binary(ours, theirs) else PAIRED
    value, stderr = float((ours - theirs).mean()), paired.paired_stderr(ours, theirs)
    return Difference(value, stderr, paired.paired_p(ours, theirs), how, len(ours) - 1)


def _between_averages(parts: Sequence[Difference]) -> Difference:
    """Take the difference of two averages: tasks are independent of each other, so that variances add up."""
    value = sum(part.value for part in parts) / len(parts)
    if any(part.stderr is None or (part.value and not part.stderr) for part in parts):  # equal shifts tell no spread
        return Difference(value, None, None, UNKNOWN)
    stderr, freedom = paired.error_of_mean([(part.stderr or 0.0, part.freedom) for part in parts])
    return _tested(value, stderr, freedom, UNPAIRED if any(part.how == UNPAIRED for part in parts) else PAIRED)


def _tested(value: float, stderr: float, freedom: float, how: str) -> Difference:
    """Test a difference under Student's law, two-sided; p is unknown where nothing is known of how far it would spread."""
    if not math.isfinite(value):
        return Difference(value, stderr, None, how)
    if stderr == 0:
        return Difference(value, stderr, None if value else 1.0, how)
    return Difference(value, stderr, paired.students_p(value / stderr, freedom), how, freedom)


# Rows of a block, judged


@dataclass(frozen=True)
class Judgement:
    """How a number stands in its column: its place among the rows (1 best, 2 second, 0 neither), and what sets it apart.

    base: its difference from the unpruned model, best: from the best row; p-values are Holm-corrected over the block.
    """

    place: int = 0
    base: Difference | None = None
    best: Difference | None = None


def places(values: Sequence[float]) -> list[int]:
    """Rank values: 1 is the best (equal ones share it), 2 the next where there are three or more, 0 any other.

    >>> places([0.5, 0.7, 0.7, 0.1]), places([1.0, 2.0]), places([3.0])
    ([2, 1, 1, 0], [0, 1], [0])
    """
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return [0] * len(values)
    ranked = sorted(set(known), reverse=True)[: 2 if len(known) > 2 else 1]
    return [0 if math.isnan(value) or value not in ranked else 1 + ranked.index(value) for value in values]


def judge(
    rows: Sequence[Mapping[str, Measure]], base: Mapping[str, Measure], columns: Sequence[str]
) -> list[dict[str, Judgement]]:
    """Judge each number of a block against the unpruned model and the block's best row, column by column.

    The p-values of the comparisons with the unpruned model are corrected together, and so are those with the best.
    """
    cells: dict[tuple[int, str], Judgement] = {}
    for column in columns:
        measured = [row.get(column) for row in rows]
        ranks = places([measure.better if measure else math.nan for measure in measured])
        best = next((measure for measure, place in zip(measured, ranks, strict=True) if place == 1), None)
        for row, (measure, place) in enumerate(zip(measured, ranks, strict=True)):
            if measure:
                from_base = difference(measure, base[column]) if column in base else None
                from_best = difference(measure, best) if best and place != 1 else None
                cells[row, column] = Judgement(place, from_base, from_best)
    from_bases = corrected([judgement.base for judgement in cells.values()])
    from_bests = corrected([judgement.best for judgement in cells.values()])
    judged: list[dict[str, Judgement]] = [{} for _ in rows]
    for ((row, column), judgement), *changes in zip(cells.items(), from_bases, from_bests, strict=True):
        judged[row][column] = Judgement(judgement.place, *changes)
    return judged


def corrected(changes: Sequence[Difference | None]) -> list[Difference | None]:
    """Correct the p-values as Holm does; unknown ones stay unknown and do not count."""
    ps = paired.holm({str(place): change.p for place, change in enumerate(changes) if change and change.p is not None})
    return [change and replace(change, p=ps.get(str(place))) for place, change in enumerate(changes)]
