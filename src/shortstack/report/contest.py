"""Which of a model's settings is best, by how much, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from shortstack.charts.chart import axis
from shortstack.charts.rows import Dot, Dots, dots
from shortstack.machine.formats import brief, counted
from shortstack.machine.tables import Block, Column, Table
from shortstack.report.figures import OURS, Figure, score_text
from shortstack.report.findings import Findings
from shortstack.report.judged import EMPTY, JudgedCell, MeasuredChange, ResultRow
from shortstack.report.results import Measure, Result
from shortstack.report.significance import Difference, difference

ROWS, RIVALS = 8, 3  # settings that are shown, and of them those of the cut that the sentences are about


@dataclass(frozen=True)
class ContestEntry:
    """A setting, its score, and how far that is from the unpruned model's."""

    result: Result
    score: Measure
    change: Difference

    @property
    def removed(self) -> int:
        return self.result.removed or 0

    @property
    def worse(self) -> bool:
        return self.change.worse or self.change.value == -math.inf


@dataclass(frozen=True)
class Contest:
    """Settings of a model, best first.

    held: the numbers of layers, from the smallest on, at which some setting is not shown to be worse than the unpruned one;
    beyond: the other ones.
    """

    findings: Findings
    model: str
    base: Measure
    entries: Sequence[ContestEntry]
    held: Sequence[int]
    beyond: Sequence[int]

    @classmethod
    def of(cls, findings: Findings, model: str) -> Contest | None:
        """Rank a model's settings; None where nothing was measured that can be compared."""
        base = findings.score(findings.bases[model])
        ranked = [
            (result, score) for result, score in findings.ranked(findings.by_model.get(model, [])) if result.removed
        ]
        if not base or not ranked:
            return None
        entries = [ContestEntry(result, score, difference(score, base)) for result, score in ranked]
        amounts = sorted({entry.removed for entry in entries})
        fine = {entry.removed for entry in entries if not entry.worse}
        not_worse = [*takewhile(lambda amount: amount in fine, amounts)]
        return cls(findings, model, base, entries, not_worse, amounts[len(not_worse) :])

    @property
    def rivals(self) -> list[ContestEntry]:
        """The settings of the largest cut at which one is not shown to be worse, as at all smaller ones; else all."""
        return [entry for entry in self.entries if not self.held or entry.removed == self.held[-1]]

    @property
    def shown(self) -> list[ContestEntry]:
        """The best of the rivals, then the best of each other number of layers."""
        best = {entry.removed: entry for entry in reversed(self.entries)}
        others = [best[amount] for amount in sorted(best)]
        first = self.rivals[:RIVALS]
        return [*first, *(entry for entry in others if entry not in first)][:ROWS]

    @property
    def lead(self) -> str:
        """Which setting is best and by how much; whether it is worth keeping."""
        best, *others = self.rivals
        of = f" of {brief(self.model)}" if len(self.findings.bases) > 1 else ""
        name, where = self.name(best), self.findings.title(self.findings.headline)
        first = f"With {counted(best.removed, 'layer')}{of} removed, {name} is best, {where} {score_text(best.score)}"
        return f"{first}{self._next(best, others)}. {self._worth(best)}"

    def name(self, entry: ContestEntry) -> str:
        return self.findings.name(entry.result, {"model", "drop"})

    def row_name(self, entry: ContestEntry) -> str:
        """Name the setting, with how many layers are gone."""
        return f"{counted(entry.removed, 'layer')}: {self.name(entry)}"

    def _next(self, best: ContestEntry, others: Sequence[ContestEntry]) -> str:
        if not others:
            return ", and no other was measured"
        second, change = others[0], difference(others[0].score, best.score)
        amount = "" if second.removed == best.removed else f"with {counted(second.removed, 'layer')} removed, "
        name = f"the next, {amount}{self.name(second)},"
        if change.p is None:
            return f"; {name} has no standard error to tell them apart"
        return f"; {name} {MeasuredChange.of(change, best.score.kind).said()}, {_chance(change)}"

    def _worth(self, best: ContestEntry) -> str:
        step, change = best.result.evaluation, best.change
        apart = f"it {MeasuredChange.of(change, self.base.kind).said(than='the unpruned model')}"
        if step and (step.result.get("collapse") or {}).get("collapsed"):
            return "It is not worth keeping: its generated text has collapsed."
        if best.worse:
            return f"Keep it only if the smaller size is worth it: {apart}, {_chance(change)}."
        if change.p is None:
            return "Whether it is worse than the unpruned model is not known: there is no standard error."
        if not self.held:
            every = f"every setting with {counted(self.beyond[0], 'layer')} removed is worse"
            return f"It is unclear whether to keep it: {apart}, {_chance(change)}, but {every}."
        rest = f"; with {counted(self.beyond[0], 'layer')} removed every setting is worse" if self.beyond else ""
        return f"It is worth keeping as far as this study can tell: {apart}, {_chance(change)}{rest}."


def _chance(change: Difference) -> str:
    return "which is more than noise" if change.significant else "which may be noise"


def best_table(contests: Sequence[Contest]) -> Table:
    """Make a table of the settings that are shown, each with its difference from the unpruned model."""
    findings, base = contests[0].findings, contests[0].base
    columns = (
        Column("setting", "text"),
        Column(findings.title(findings.headline), base.kind, "%" if base.kind == "share" else ""),
        Column("change", unit=MeasuredChange.of(contests[0].entries[0].change, base.kind).unit),
        Column("95% interval"),
    )
    blocks = [Block(brief(contest.model) if len(contests) > 1 else "", tuple(_rows(contest))) for contest in contests]
    caption = "The best settings of the cut above, then the best of every other. ± is one standard error."
    return Table("Which setting", columns, blocks, caption, key="best")


def _rows(contest: Contest) -> list[ResultRow]:
    unpruned = JudgedCell("unpruned", "text"), JudgedCell.of(contest.base), EMPTY, EMPTY
    return [ResultRow(unpruned, base=True), *(_row(contest, entry) for entry in contest.shown)]


def _row(contest: Contest, entry: ContestEntry) -> ResultRow:
    change, interval = MeasuredChange.of(entry.change, entry.score.kind).cells
    cells = JudgedCell(contest.row_name(entry), "text"), JudgedCell.of(entry.score), replace(change, note=""), interval
    return ResultRow(cells, trials=entry.result.numbers)


def differences(contests: Sequence[Contest]) -> Figure:
    """Draw the same settings by their difference from the unpruned model."""
    shown_entries = [(contest, entry) for contest in contests for entry in contest.shown]
    changes = [MeasuredChange.of(entry.change, entry.score.kind) for _, entry in shown_entries]
    factor = contests[0].base.kind == "perplexity"
    level = 1.0 if factor else 0.0
    ends = [end for change in changes for end in (change.value, *(change.interval or ()))]
    points = contests[0].base.kind == "share"
    scale = axis("", [level, *ends], lambda value: f"{100 * value if points else value:.3g}", log=factor)
    rows = [
        Dots(_named(contest, entry), _dot(entry is contest.rivals[0], change), level)
        for (contest, entry), change in zip(shown_entries, changes, strict=True)
    ]
    what = contests[0].findings.title(contests[0].findings.headline)
    unit = ", as a factor" if factor else ", in points" if points else ""
    title = f"Change of {what} from the unpruned model{unit}"
    better = "left" if factor else "right"
    caption = f"Dotted: the unpruned model; {better} of it is better. Bars: 95% intervals of the difference."
    return Figure("first", title, caption, dots(rows, title=title, scale=scale))


def _named(contest: Contest, entry: ContestEntry) -> str:
    model = f"{brief(contest.model, 16)}, " if len(contest.findings.bases) > 1 else ""
    return brief(f"{model}{contest.row_name(entry)}", 84)


def _dot(best: bool, change: MeasuredChange) -> list[Dot]:
    if math.isnan(change.value):
        return []
    low, high = change.interval or (change.value, change.value)
    return [Dot(OURS if best else None, change.value, low, high, f"{change.text} {change.within}".rstrip())]
