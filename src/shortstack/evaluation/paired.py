"""Statistics of evaluations: estimates with their standard errors, and paired tests of two models on the same documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from shortstack.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

COVERAGE, LEVEL = 0.95, 0.05
AT_CHANCE = 2.0  # standard errors: a base model that is not further above chance is at chance
MCNEMAR, PAIRED, UNPAIRED = "McNemar's exact test", "differences on the same documents", "standard errors alone"
SAME, UNKNOWN = "the same measurement", "no standard errors"


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; None if that is unknown.

    >>> str(Estimate(0.8, 0.1))
    '80.0% ± 10.0%'
    """

    value: float
    stderr: float | None = None

    @property
    def error(self) -> float:
        """The standard error; 0 if it is unknown."""
        return self.stderr or 0.0

    def __str__(self) -> str:
        return f"{self.value:.1%} ± {self.error:.1%}"


def share_stderr(right: int, questions: int) -> float:
    """Return the standard error of a share p of n, two or more: sqrt(p (1 - p) / (n - 1)).

    Of none or all right that would be 0, as if more questions could say nothing else. There it is the standard deviation
    of Jeffreys' posterior, Beta(right + 1/2, wrong + 1/2).

    >>> round(share_stderr(10, 20), 4), round(share_stderr(20, 20), 4), round(share_stderr(0, 20), 4)
    (0.1147, 0.0325, 0.0325)
    """
    if right in (0, questions):
        a, b = right + 0.5, questions - right + 0.5
        return math.sqrt(a * b / (a + b + 1)) / (a + b)
    share = right / questions
    return math.sqrt(share * (1 - share) / (questions - 1))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of independent numbers."""
    value = sum(each.value for each in estimates) / len(estimates)
    squares = [each.stderr**2 for each in estimates if each.stderr is not None]
    return Estimate(value, math.sqrt(sum(squares)) / len(estimates) if len(squares) == len(estimates) else None)


def ratio(before: Estimate, after: Estimate) -> Estimate:
    """Return after / before; their errors count as independent.

    >>> str(ratio(Estimate(0.5, 0.0), Estimate(0.4, 0.05)))
    '80.0% ± 10.0%'
    """
    value = after.value / before.value
    if not after.value:
        return Estimate(0.0, after.error / before.value)
    return Estimate(value, value * math.hypot(before.error / before.value, after.error / after.value))


# What two models are compared by


@dataclass(frozen=True)
class Sample:
    """A measurement of a model that others are compared with; higher is better.

    estimate: of a perplexity minus its loss. outcomes: by document (of a probe by item, of a text by window), where they
    were kept. parts: independent samples that it is the mean of, such as the tasks of an average. seeds: the values of
    single seeds, where it is the mean of several. sources: of the measurement; with the same ones it is the same.
    """

    estimate: Estimate
    outcomes: Mapping[str, float] | None = field(default=None, repr=False)
    parts: tuple[Sample, ...] = field(default=(), repr=False)
    seeds: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, estimate: Estimate, outcomes: Mapping[str, float], *, macro: bool = False, sources: tuple[str, ...] = ()
    ) -> Sample:
        """Return the sample of some outcomes; macro: of the mean of tasks, whose documents are called TASK/DOCUMENT."""
        if not macro:
            return cls(estimate, outcomes, sources=sources)
        parts: dict[str, dict[str, float]] = {}
        for document, value in outcomes.items():
            parts.setdefault(document.partition("/")[0], {})[document] = value
        if any(len(part) < 2 for part in parts.values()):
            return cls(estimate, sources=sources)
        ordered = (part for _, part in sorted(parts.items()))
        samples = (cls(mean_of(np.array([*part.values()])), part, sources=sources) for part in ordered)
        return cls(estimate, parts=tuple(samples), sources=sources)

    @property
    def seed_variance(self) -> float:
        """The variance of the seeds' mean; 0 of a single seed."""
        return float(np.var(self.seeds, ddof=1)) / len(self.seeds) if len(self.seeds) > 1 else 0.0

    @property
    def document_stderr(self) -> float | None:
        """The standard error that the choice of documents makes, without that of seeds."""
        stderr = self.estimate.stderr
        return None if stderr is None else math.sqrt(max(0.0, stderr**2 - self.seed_variance))

    @cached_property
    def values(self) -> Values:
        """The outcomes in the order of the documents' names."""
        return np.array([value for _, value in sorted((self.outcomes or {}).items())], dtype=float)

    @cached_property
    def on_documents(self) -> Estimate:
        """The mean of the outcomes; of parts, that of their means."""
        return mean([part.on_documents for part in self.parts]) if self.parts else mean_of(self.values)

    @property
    def documents(self) -> set[str]:
        return {*(self.outcomes or {})}.union(*(part.documents for part in self.parts))


def over_seeds(samples: Sequence[Sample]) -> Sample:
    """Average over seeds; the variance is that of the documents and that of the seeds' mean."""
    values = [sample.estimate.value for sample in samples]
    parts = [sample.parts for sample in samples]
    same = len({len(each) for each in parts}) == 1
    return Sample(
        seeds_mean([sample.estimate for sample in samples]),
        _mean_outcomes(samples),
        tuple(map(over_seeds, zip(*parts, strict=True))) if same else (),
        tuple(values),
        tuple(dict.fromkeys(source for sample in samples for source in sample.sources)),
    )


def seeds_mean(seeds: Sequence[Estimate]) -> Estimate:
    values, errors = [seed.value for seed in seeds], [seed.stderr for seed in seeds]
    known = [error**2 for error in errors if error is not None]
    if len(known) < len(errors) or not all(map(math.isfinite, values)):
        return Estimate(float(np.mean(values)))
    stderr = math.sqrt(float(np.mean(known)) + float(np.var(values, ddof=1)) / len(values))
    return Estimate(float(np.mean(values)), stderr)


def _mean_outcomes(samples: Sequence[Sample]) -> dict[str, float] | None:
    outcomes = [sample.outcomes for sample in samples if sample.outcomes]
    if len(outcomes) < len(samples) or any(each.keys() != outcomes[0].keys() for each in outcomes):
        return None
    return {document: float(np.mean([each[document] for each in outcomes])) for document in outcomes[0]}


def average(parts: Sequence[Sample]) -> Sample:
    """Return the mean of samples that are independent of each other, except that a seed is the same in all of them."""
    alike = len({len(part.seeds) for part in parts}) == 1
    seeds = tuple(map(float, np.mean([part.seeds for part in parts], axis=0))) if alike else ()
    sources = tuple(dict.fromkeys(source for part in parts for source in part.sources))
    whole = Sample(mean([part.estimate for part in parts]), None, tuple(parts), seeds, sources)
    documents = mean([Estimate(part.estimate.value, part.document_stderr) for part in parts])
    if documents.stderr is None:
        return whole
    return replace(whole, estimate=replace(documents, stderr=math.hypot(documents.stderr, whole.seed_variance**0.5)))


# How far apart two models are


@dataclass(frozen=True)
class Difference:
    """One sample minus another. p: two-sided, None if unknown; test: that it is from; freedom: degrees of freedom."""

    value: float
    stderr: float | None
    p: float | None
    test: str
    freedom: float = math.inf

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < LEVEL

    @property
    def worse(self) -> bool:
        """Whether it is below 0, beyond chance."""
        return self.significant and self.value < 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval by Student's law; None if the standard error is unknown."""
        if self.stderr is None or not math.isfinite(self.value):
            return None
        return students_interval(self.value, self.stderr, self.freedom)


def difference(ours: Sample, theirs: Sample) -> Difference:
    """Return how much better `ours` is, with a test on the same documents where those are known."""
    found, several = _on_documents(ours, theirs), [sample for sample in (ours, theirs) if sample.seed_variance]
    if not several or found.stderr is None or found.test == SAME:
        return found
    # What a seed changes is chance, too: Welch's test, since few seeds say little of their spread.
    variances = [(found.stderr**2, found.freedom)]
    variances += [(sample.seed_variance, len(sample.seeds) - 1.0) for sample in several]
    return _tested(found.value, *error_of_sum(variances), f"{found.test}, with the spread of seeds")


def _on_documents(ours: Sample, theirs: Sample) -> Difference:
    """Return the difference if the choice of documents alone is chance."""
    if ours.sources and ours.sources == theirs.sources:
        return Difference(0.0, 0.0, 1.0, SAME)
    if ours.parts and len(ours.parts) == len(theirs.parts):
        return _between_means([_on_documents(a, b) for a, b in zip(ours.parts, theirs.parts, strict=True)])
    if ours.outcomes and theirs.outcomes and ours.outcomes.keys() == theirs.outcomes.keys() and len(ours.outcomes) > 1:
        return _paired(ours.values, theirs.values)
    value, errors = ours.estimate.value - theirs.estimate.value, (ours.document_stderr, theirs.document_stderr)
    alike = value and 0 in errors and not (ours.seed_variance or theirs.seed_variance)
    if None in errors or alike:  # equal values tell no spread
        return Difference(value, None, None, UNKNOWN)
    return _tested(value, math.hypot(*(error or 0.0 for error in errors)), math.inf, UNPAIRED)


def _paired(ours: Values, theirs: Values) -> Difference:
    test = MCNEMAR if binary(ours, theirs) else PAIRED
    value, stderr = float((ours - theirs).mean()), paired_stderr(ours, theirs)
    return Difference(value, stderr, paired_p(ours, theirs), test, len(ours) - 1)


def _between_means(parts: Sequence[Difference]) -> Difference:
    """Return the difference of two means, whose parts are independent of each other, so that variances add up."""
    if len(parts) == 1:
        return parts[0]
    value = sum(part.value for part in parts) / len(parts)
    if any(part.stderr is None or (part.value and not part.stderr) for part in parts):  # equal shifts tell no spread
        return Difference(value, None, None, UNKNOWN)
    variances = [(((part.stderr or 0.0) / len(parts)) ** 2, part.freedom) for part in parts]
    test = UNPAIRED if any(part.test == UNPAIRED for part in parts) else PAIRED
    return _tested(value, *error_of_sum(variances), test)


def _tested(value: float, stderr: float, freedom: float, test: str) -> Difference:
    """Test a difference under Student's law, two-sided; p is unknown without a spread."""
    if stderr == 0 or not math.isfinite(value):
        return Difference(value, stderr, None if value else 1.0, test)
    return Difference(value, stderr, students_p(value / stderr, freedom), test, freedom)


@dataclass(frozen=True)
class Paired:
    """A model compared with its base model on the same documents.

    difference, stderr, interval, p: as of Difference; p_holm: corrected for the number of tasks compared together.
    retention: 100 value / base; None where the base is not positive or an outcome is negative.
    retention_above_chance: 100 (value - chance) / (base - chance); None where no chance level is known, and where the
        base is at chance.
    """

    value: float
    base: float
    n: int
    difference: float
    stderr: float | None
    interval: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    retention: float | None
    retention_above_chance: float | None
    base_at_chance: bool


def compare_tasks(
    model: Mapping[str, Sample], base: Mapping[str, Sample], *, chances: Mapping[str, float] | None = None
) -> dict[str, Paired]:
    """Compare both on each task, and correct the p-values together. chances: of tasks, what guessing gets, where known.

    Raises:
        DataError: the two were not measured on the same tasks and documents.
    """
    if model.keys() != base.keys():
        raise mismatch("the tasks", {*model}, {*base})
    pairs = {task: compare(task, ours, base[task], chance=(chances or {}).get(task)) for task, ours in model.items()}
    corrected = holm({task: pair.p for task, pair in pairs.items() if pair.p is not None})
    return {task: replace(pair, p_holm=corrected.get(task)) for task, pair in pairs.items()}


def compare(task: str, ours: Sample, theirs: Sample, *, chance: float | None = None) -> Paired:
    """Compare both on one task, documents paired by their names; p_holm is p, as of one task alone.

    >>> ours, theirs = (Sample(Estimate(0), dict(enumerate(right))) for right in ((0, 0, 0, 0, 0, 0, 1, 1), (1,) * 8))
    >>> pair = compare("t", ours, theirs, chance=0.0)
    >>> pair.difference, pair.p, pair.retention
    (-0.75, 0.03125, 25.0)
    """
    if ours.documents != theirs.documents:
        raise mismatch(f"the documents of {task}", ours.documents, theirs.documents)
    found, model, base = difference(ours, theirs), ours.on_documents, theirs.on_documents
    at_chance = chance is not None and base.value - chance <= AT_CHANCE * base.error
    above = None if chance is None or at_chance else 100 * (model.value - chance) / (base.value - chance)
    negative = any(value < 0 for each in (ours, theirs) for part in (each.parts or [each]) for value in part.values)
    return Paired(
        value=model.value,
        base=base.value,
        n=len(ours.documents),
        difference=found.value,
        stderr=found.stderr,
        interval=found.interval,
        p=found.p,
        p_holm=found.p,
        retention=100 * model.value / base.value if base.value > 0 and not negative else None,
        retention_above_chance=above,
        base_at_chance=at_chance,
    )


def mismatch(what: str, ours: set[str], theirs: set[str]) -> DataError:
    """Return the error that two models were not measured on the same."""

    def alone(names: set[str]) -> str:
        return f"{len(names)} ({', '.join(sorted(names)[:3])})" if names else "none"

    differ = f"{alone(ours - theirs)} only of the model, {alone(theirs - ours)} only of the base model"
    return DataError(f"{what} differ: {differ}; evaluate both with the same settings")


# Tests


@cache  # large counts take a while, and models that share a checkpoint share them
def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p of `gained` against `lost` among the documents on which two models differ.

    min(1, 2 P[B <= min(gained, lost)]) with B binomial of gained + lost fair coins (McNemar 1947, exact form).
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for their number: at 5 %, the chance of one or more false alarms among all is at most 5 %.

    The k-th smallest of m is multiplied by m - k + 1, and none is below one before it (Holm 1979).
    """
    corrected, floor = {}, 0.0
    for place, task in enumerate(sorted(ps, key=ps.__getitem__)):
        floor = max(floor, min(1.0, (len(ps) - place) * ps[task]))
        corrected[task] = floor
    return {task: corrected[task] for task in ps}


def paired_p(ours: Values, theirs: Values) -> float:
    """Return the two-sided p of the differences: McNemar's exact test of right and wrong answers, else Student's t.

    Differences that are all the same tell no spread; of them it is the sign test.
    """
    differences = ours - theirs
    stderr = _stderr(differences)
    if binary(ours, theirs) or alike(differences) or not stderr:
        return mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    return students_p(float(differences.mean()) / stderr, len(differences) - 1)


def students_p(ratio: float, freedom: float) -> float:
    """Return the two-sided p under Student's law; with no end of degrees of freedom that is the normal one."""
    if math.isinf(freedom):
        return math.erfc(abs(ratio) / math.sqrt(2))
    from scipy.stats import t

    return float(2 * t.sf(abs(ratio), freedom))


def students_interval(value: float, stderr: float, freedom: float) -> tuple[float, float]:
    """Return 95 % of where a value with that standard error may lie, by Student's law."""
    if math.isinf(freedom):
        reach = stderr * NormalDist().inv_cdf((1 + COVERAGE) / 2)
    else:
        from scipy.stats import t

        reach = stderr * float(t.ppf((1 + COVERAGE) / 2, freedom))
    return value - reach, value + reach


def error_of_sum(variances: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the standard error of a sum of independent numbers, and its degrees of freedom (Satterthwaite).

    variances: of each the variance, and the degrees of freedom that it was estimated with.
    """
    total = sum(variance for variance, _ in variances)
    few = sum(variance**2 / freedom for variance, freedom in variances)
    return math.sqrt(total), total**2 / few if few else math.inf


def mean_of(values: Values) -> Estimate:
    """Return the mean of outcomes. The standard error is sd / sqrt(n); of all right or all wrong that of share_stderr()."""
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else math.nan)
    if alike(values) and values[0] in (0, 1):
        return Estimate(float(values.mean()), share_stderr(int(values.sum()), len(values)))
    return Estimate(float(values.mean()), _stderr(values))


def _stderr(values: Values) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def paired_stderr(ours: Values, theirs: Values) -> float:
    """Return the standard error of the mean of differences, sd / sqrt(n); of right and wrong answers never 0.

    Where these differ alike, 1/2 is added to each cell of rights and wrongs (Agresti and Min 2005).
    """
    differences = ours - theirs
    if not (binary(ours, theirs) and alike(differences)):
        return _stderr(differences)
    n = len(differences) + 2
    gained, lost = float((differences > 0).sum()) + 0.5, float((differences < 0).sum()) + 0.5
    mean = (gained - lost) / n
    return math.sqrt((gained + lost) / n - mean**2) / math.sqrt(n)


def binary(ours: Values, theirs: Values) -> bool:
    """Say whether both are right and wrong answers."""
    return bool(np.isin([ours, theirs], (0, 1)).all())


def alike(differences: Values) -> bool:
    """Say whether all are the same, so that they tell nothing of how far they would spread."""
    return bool((differences == differences[0]).all())
