"""Two models on the same documents: how far apart they are, and whether that is more than chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shortstack.errors import DataError
from shortstack.machine.numbers import share_stderr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]


COVERAGE = 0.95
AT_CHANCE = 2.0  # a base that is not so many standard errors above chance is at chance


class Estimate(NamedTuple):
    """A number and its standard error.

    >>> str(Estimate(0.8, 0.1))
    '80.0% ± 10.0%'
    """

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ± {self.stderr:.1%}"


def ratio(before: Estimate, after: Estimate) -> Estimate:
    """Return after / before; the two errors count as independent.

    >>> str(ratio(Estimate(0.5, 0.0), Estimate(0.4, 0.05)))
    '80.0% ± 10.0%'
    """
    value = after.value / before.value
    if not after.value:
        return Estimate(0.0, after.stderr / before.value)
    return Estimate(value, value * math.hypot(before.stderr / before.value, after.stderr / after.value))


@dataclass(frozen=True)
class Outcomes:
    """The outcome on each document of a task: 1 or 0 for right or wrong, or any number, higher being better.

    macro: the value is the mean of a group's tasks, each counted the same; documents are called TASK/DOCUMENT.
    """

    documents: tuple[str, ...]
    values: tuple[float, ...]
    macro: bool = False

    def by_task(self) -> dict[str, list[int]]:
        """List the places of each task's documents, by its name; all of them, where no tasks are counted the same.

        >>> Outcomes(("a/1", "b/1", "a/2"), (1, 0, 1), macro=True).by_task()
        {'a': [0, 2], 'b': [1]}
        """
        places = defaultdict[str, list[int]](list)
        for place, document in enumerate(self.documents):
            places[document.partition("/")[0] if self.macro else ""].append(place)
        return dict(places)


@dataclass(frozen=True)
class Paired:
    """A model against its base on the same documents; every number is the model's minus the base's, or a share of it.

    difference, stderr: the mean of the differences, and its standard error, as paired_stderr() has it; of tasks that count
        alike that of their mean.
    interval: 95 % of where the difference may lie, by Student's law.
    p: two-sided, as paired_p() has it; of tasks that count alike by Student's law.
    p_holm: the same, corrected for the number of tasks compared together.
    retention: 100 value / base; None where the base is not positive or an outcome is negative: no share of anything.
    retention_above_chance: 100 (value - chance) / (base - chance); None where no chance level is known, and where the
        base is at chance: then there is nothing to retain.
    """

    value: float
    base: float
    n: int
    difference: float
    stderr: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    retention: float | None
    retention_above_chance: float | None
    base_at_chance: bool


def compare_tasks(
    model: Mapping[str, Outcomes],
    base: Mapping[str, Outcomes],
    *,
    chances: Mapping[str, float] | None = None,
) -> dict[str, Paired]:
    """Compare both on each task, and correct the p-values together.

    chances: of a task, what guessing gets; a task that is not named has no such level.
    """
    if model.keys() != base.keys():
        raise mismatch("the tasks", set(model), set(base))
    pairs = {
        task: compare(task, outcomes, base[task], chance=(chances or {}).get(task)) for task, outcomes in model.items()
    }
    corrected = holm({task: pair.p for task, pair in pairs.items()})
    return {task: replace(pair, p_holm=corrected[task]) for task, pair in pairs.items()}


def compare(task: str, model: Outcomes, base: Outcomes, *, chance: float | None = None) -> Paired:
    """Compare both on one task, documents paired by their ids; p_holm is p, as of one task alone.

    >>> ids = tuple("abcdefgh")
    >>> pair = compare("t", Outcomes(ids, (0, 0, 0, 0, 0, 0, 1, 1)), Outcomes(ids, (1,) * 8), chance=0.0)
    >>> pair.difference, pair.p, pair.retention
    (-0.75, 0.03125, 25.0)
    """
    ours, theirs = _paired(task, model, base)
    tasks = [(ours[places], theirs[places]) for places in model.by_task().values()]
    if any(len(values) < 2 for values, _ in tasks):
        raise DataError(
            f"{task}: a task of it has one document; two or more are needed to compare models", option="limit"
        )
    value, reference, difference = (
        float(np.mean([values.mean() for values in side]))
        for side in zip(*((mine, other, mine - other) for mine, other in tasks), strict=True)
    )
    stderr, freedom = error_of_mean([(paired_stderr(*pair), len(pair[0]) - 1) for pair in tasks])
    spread, _ = error_of_mean([(mean_stderr(values), len(values) - 1) for _, values in tasks])
    at_chance = chance is not None and reference - chance <= AT_CHANCE * spread
    p = paired_p(ours, theirs) if len(tasks) == 1 or not stderr else students_p(difference / stderr, freedom)
    retention = 100 * value / reference if reference > 0 and min(ours.min(), theirs.min()) >= 0 else None
    above = None if chance is None or at_chance else 100 * (value - chance) / (reference - chance)
    return Paired(
        value=value,
        base=reference,
        n=len(ours),
        difference=difference,
        stderr=stderr,
        interval=students_interval(difference, stderr, freedom),
        p=p,
        p_holm=p,
        retention=retention,
        retention_above_chance=above,
        base_at_chance=at_chance,
    )


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


def error_of_mean(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the standard error of the mean of independent numbers, and its degrees of freedom (Satterthwaite).

    parts: of each number its standard error, and the degrees of freedom that it was estimated with.
    """
    variances = [((stderr / len(parts)) ** 2, freedom) for stderr, freedom in parts]
    return error_of_sum(variances)


def error_of_sum(variances: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the standard error of a sum of independent numbers, and its degrees of freedom (Satterthwaite).

    variances: of each the variance, and the degrees of freedom that it was estimated with.
    """
    total = sum(variance for variance, _ in variances)
    few = sum(variance**2 / freedom for variance, freedom in variances)
    return math.sqrt(total), total**2 / few if few else math.inf


def mean_stderr(values: Values) -> float:
    """Return the standard error of the mean, sd / sqrt(n); where all are right or all wrong that of share_stderr()."""
    if alike(values) and values[0] in (0, 1):
        return share_stderr(int(values.sum()), len(values))
    return _stderr(values)


def _stderr(values: Values) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def paired_stderr(ours: Values, theirs: Values) -> float:
    """Return the standard error of the mean of differences, sd / sqrt(n); of right and wrong answers never 0."""
    if binary(ours, theirs) and alike(ours - theirs):
        return _adjusted_stderr(ours - theirs)
    return _stderr(ours - theirs)


def binary(ours: Values, theirs: Values) -> bool:
    """Say whether both are right and wrong answers."""
    return bool(np.isin([ours, theirs], (0, 1)).all())


def alike(differences: Values) -> bool:
    """Say whether all are the same, so that they tell nothing of how far they would spread."""
    return bool((differences == differences[0]).all())


def _adjusted_stderr(differences: Values) -> float:
    """Return the standard error of the mean, 1/2 added to each cell of rights and wrongs (Agresti and Min 2005)."""
    n = len(differences) + 2
    gained, lost = float((differences > 0).sum()) + 0.5, float((differences < 0).sum()) + 0.5
    mean = (gained - lost) / n
    return math.sqrt((gained + lost) / n - mean**2) / math.sqrt(n)


def _paired(task: str, model: Outcomes, base: Outcomes) -> tuple[Values, Values]:
    """Return the values of both, [documents], in the order of the model's documents."""
    ours, theirs = (_by_document(task, outcomes) for outcomes in (model, base))
    if ours.keys() != theirs.keys():
        raise mismatch(f"the documents of {task}", set(ours), set(theirs))
    if len(ours) < 2:
        raise DataError(f"{task} has one document; two or more are needed to compare models", option="limit")
    return np.array([*ours.values()], dtype=float), np.array([theirs[document] for document in ours], dtype=float)


def _by_document(task: str, outcomes: Outcomes) -> dict[str, float]:
    values = dict(zip(outcomes.documents, outcomes.values, strict=True))
    wrong = [document for document, value in values.items() if not math.isfinite(value)]
    if wrong or len(values) < len(outcomes.documents):
        problem = f"{values[wrong[0]]} of {wrong[0]}" if wrong else "a document that comes twice"
        raise DataError(f"{task}: {problem}; each document needs one finite outcome")
    return values


def mismatch(what: str, ours: set[str], theirs: set[str]) -> DataError:
    """Return the error that two models were not measured on the same."""

    def alone(names: set[str]) -> str:
        return f"{len(names)} ({', '.join(sorted(names)[:3])})" if names else "none"

    differ = f"{alone(ours - theirs)} only of the model, {alone(theirs - ours)} only of the base model"
    return DataError(f"{what} differ: {differ}; evaluate both with the same settings")
