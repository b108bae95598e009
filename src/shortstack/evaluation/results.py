"""Results of evaluate(): of tasks, of probes, and of a model, with those of its base model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shortstack.evaluation.paired import Estimate, Paired, Sample, average, compare, compare_tasks, mean, mismatch
from shortstack.evaluation.perplexity import Perplexity
from shortstack.evaluation.suites import PERPLEXITIES, SHARES, SUITES
from shortstack.machine.files import to_jsonable
from shortstack.machine.formats import shown
from shortstack.machine.tables import Cell, Column, Table, Tabled

FEW = 20  # items of a probe: with fewer its share says little by itself
PROBES = "generation probes"
COLUMNS = (
    *(Column("measured", "text"), Column("metric"), Column("value"), Column("base"), Column("n")),
    *(Column("chance", "ratio"), Column("BOS"), Column("difference", "difference")),
    *(Column("95 % interval", "difference"), Column("p, Holm", "p")),
    *(Column("kept", "percent"), Column("above chance", "percent")),
)


@dataclass(frozen=True)
class TaskResult:
    """Result of a task of lm-eval on its documents, or of a probe on its items.

    value, stderr: of `metric`, as the harness aggregates and estimates them; stderr is None if it has none.
    documents, outcomes: digests of the documents and the metric on each, in the order they were asked, more being better:
    of a perplexity minus the nats per unit (word or document).
    macro: whether the value is the mean of a group's tasks, each counted the same, and not of all documents.
    also: the other metrics. parts: of a group, the value of each of its tasks. chance: what guessing gets, where known.
    version: the harness's, of the task. shots: examples in the prompt. bos: whether texts start with BOS.
    """

    metric: str
    value: float
    stderr: float | None
    n: int
    version: str
    shots: int
    bos: bool
    dtype: str
    chance: float | None
    higher_is_better: bool
    documents: tuple[str, ...] = field(repr=False)
    outcomes: tuple[float, ...] = field(repr=False)
    also: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    macro: bool = False

    @property
    def cell(self) -> Cell:
        return Cell(self.value, "score", self.stderr)

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share of documents."""
        return self.metric in SHARES

    @property
    def by_document(self) -> bool:
        """Whether the metric is a number on each document; mcc, for one, is of all together."""
        return all(map(math.isfinite, self.outcomes))

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.stderr)

    @property
    def sample(self) -> Sample:
        """For a paired comparison with another model: the outcomes that the value is the mean of."""
        estimate = self.estimate if self.higher_is_better else Estimate(-self.value, self.stderr)
        return Sample.of(estimate, dict(zip(self.documents, self.outcomes, strict=True)), macro=self.macro)


@dataclass(frozen=True, repr=False)
class EvalResult(Tabled):
    """Result of evaluate().

    base: that of the base model. against, probes_against: the tasks and the probes of both, paired.
    """

    model: str
    perplexity: Mapping[str, Perplexity] = field(default_factory=dict)
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    probes: Mapping[str, TaskResult] = field(default_factory=dict)
    base: EvalResult | None = None
    against: Mapping[str, Paired] = field(default_factory=dict)
    probes_against: Mapping[str, Paired] = field(default_factory=dict)

    def compare_to(self, base: EvalResult) -> EvalResult:
        """Return the result with that of its base model: tasks paired document by document, probes item by item.

        A task whose metric is one number of all documents together (mcc, f1) is not paired.

        Raises:
            DataError: the two were not measured on the same texts, tasks, documents and items.
        """
        for what, ours, theirs in (("texts", self.perplexity, base.perplexity), ("tasks", self.tasks, base.tasks)):
            if ours.keys() != theirs.keys():
                raise mismatch(f"the {what}", {*ours}, {*theirs})
        against, probes_against = _paired(self.tasks, base.tasks), _paired(self.probes, base.probes)
        return replace(self, base=base, against=against, probes_against=probes_against)

    def table(self) -> Table:
        """Return a row for each text (its perplexity and its loss), task and probe, with the base model's values."""
        texts = ((name, shown(text.value, "perplexity")) for name, text in self.perplexity.items())
        title = ", ".join(f"{value} perplexity on {name}" for name, value in texts) or "no text"
        counts = f"tasks: {len(self.tasks)}, probes: {len(self.probes)}"
        dtypes = {text.dtype for text in self.perplexity.values()}
        dtypes |= {task.dtype for task in (*self.tasks.values(), *self.probes.values())}
        rows = [(*row, *[None] * (len(COLUMNS) - len(row))) for row in self._rows()]
        caption = f"± one standard error. Computed in {', '.join(sorted(dtypes))}."
        return Table.of(f"{self.model}: {title}; {counts}", COLUMNS, rows, caption=caption, notes=[*self._notes()])

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield rows; of few items the probes say little one by one, and only their mean has a row."""
        for name, text in self.perplexity.items():
            side, n, bos = self.base.perplexity[name] if self.base else None, text.tokens, text.windows["bos"]
            yield name, "perplexity", text.cell, side and side.cell, n, None, bos
            yield name, "nats per token", text.loss_cell, side and side.loss_cell, n, None, bos
        for name, task in self.tasks.items():
            yield _row(name, task, self.base.tasks[name] if self.base else None, self.against.get(name))
        for name, probe in self.probes.items():
            if probe.n >= FEW or not probe.is_share:
                other = self.base.probes.get(name) if self.base else None
                yield _row(name, probe, other, self.probes_against.get(name))
        if probes := self.probes_mean:
            base = self.base.probes_mean if self.base else None
            sides = (each and Cell(each.value, "score", each.stderr) for each in (probes, base))
            n = sum(probe.n for probe in self.probes.values() if probe.is_share)
            both = [average(_shares(side.probes)) for side in (self, self.base) if side and base]
            yield PROBES, "mean accuracy", *sides, n, None, None, *_comparison(compare(PROBES, *both) if both else None)
        others = replace(self.base, tasks={name: self.base.tasks[name] for name in self.tasks}) if self.base else None
        for name, value in self.averages.items():
            base_value = others.averages.get(name) if others else None
            yield f"Average, {name}", "mean of shares", Cell(value, "score"), Cell(base_value, "score")

    def _notes(self) -> Iterator[str]:
        for name, task in ({**self.tasks, **self.probes} if self.base else {}).items():
            if not task.by_document:
                number = f"{task.metric} is one number for all documents, not one for each"
                yield f"{name}: not compared, since {number}."
            elif task.metric in PERPLEXITIES:
                unit = f"log-likelihood in nats per {PERPLEXITIES[task.metric]}, higher is better"
                yield f"{name}: base and value are {task.metric}; the difference and its interval are of the {unit}."
            elif not task.higher_is_better:
                yield f"{name}: of {task.metric} less is better; the difference and its interval have the sign turned."
        for name in self.perplexity:
            if len({side.perplexity[name].windows["sha256"] for side in (self, self.base) if side}) > 1:
                yield f"{name}: the two were measured on other tokens, so that their perplexities do not compare."
        few = min((probe.n for probe in self.probes.values() if probe.is_share), default=FEW)
        if few < FEW:
            yield f"With {few} items a probe says little by itself; the JSON has each."

    @property
    def probes_mean(self) -> Estimate | None:
        """Mean of the probes' shares; None without probes."""
        shares = [probe.estimate for probe in self.probes.values() if probe.is_share]
        return mean(shares) if shares else None

    @property
    def averages(self) -> dict[str, float]:
        """Mean over the tasks that are shares (acc, exact_match), of each suite that was run whole, else of all `tasks`.

        A group such as mmlu counts once, with the mean over its documents.
        """
        shares = {name: task.value for name, task in self.tasks.items() if task.is_share}
        suites = {name: suite for name, suite in SUITES.items() if self.tasks.keys() >= {*suite}}
        values = {name: [shares[task] for task in suite if task in shares] for name, suite in suites.items()}
        several = {name: some for name, some in values.items() if len(some) > 1} or {"tasks": [*shares.values()]}
        return {name: math.fsum(some) / len(some) for name, some in several.items() if len(some) > 1}

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "perplexity": to_jsonable(self.perplexity),
            "tasks": to_jsonable(self.tasks),
            "averages": self.averages,
            "probes": to_jsonable(self.probes),
            "probes_mean": to_jsonable(self.probes_mean),
            "base": self.base.to_dict() if self.base else None,
            "against": to_jsonable(self.against),
            "probes_against": to_jsonable(self.probes_against),
        }


def _paired(ours: Mapping[str, TaskResult], theirs: Mapping[str, TaskResult]) -> dict[str, Paired]:
    """Pair the results that have a number for each document."""
    whole = {name for side in (ours, theirs) for name, result in side.items() if not result.by_document}
    sides = ({name: result.sample for name, result in side.items() if name not in whole} for side in (ours, theirs))
    chances = {name: result.chance for name, result in ours.items() if result.chance is not None}
    return compare_tasks(*sides, chances=chances)


def _shares(probes: Mapping[str, TaskResult]) -> list[Sample]:
    return [probe.sample for _, probe in sorted(probes.items()) if probe.is_share]


def _row(name: str, task: TaskResult, base: TaskResult | None, paired: Paired | None) -> tuple[Any, ...]:
    cells = task.cell, base and base.cell
    return name, task.metric, *cells, task.n, task.chance, task.bos, *_comparison(paired)


def _comparison(paired: Paired | None) -> tuple[Any, ...]:
    if paired is None:
        return ()
    kept, above = (share and share / 100 for share in (paired.retention, paired.retention_above_chance))
    known = "base at chance" if paired.base_at_chance else above
    return Cell(paired.difference, stderr=paired.stderr), paired.interval, paired.p_holm, kept, known
