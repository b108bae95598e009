"""The first screen: what is kept of one setting, or which of a model's settings is best, and whether to keep it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from shortstack.charts.chart import axis
from shortstack.charts.rows import Dot, Dots, dots
from shortstack.machine.formats import brief, counted, listed, shown
from shortstack.machine.tables import Block, Column, Table
from shortstack.report.figures import OURS, Figure, score_text
from shortstack.report.findings import Findings, Result
from shortstack.report.measures import UNITS, Difference, Measure, difference, mean
from shortstack.report.tables import EMPTY, UNPRUNED, JudgedCell, ResultRow, change_cells

ROWS, RIVALS = 8, 3  # settings that are shown, and of them those of the cut that the sentences are about
WRITING = "generation probes"
SURE = 0.93  # an interval of a speed that covers less says so


@dataclass(frozen=True)
class Opening:
    """The first screen; empty where nothing is there to compare."""

    lead: str = ""
    figure: Figure | None = None
    table: Table | None = None


def opening(findings: Findings) -> Opening:
    """Open with what is kept of one setting, or with which of several is best."""
    subject = findings.subject
    if subject and subject.model in findings.bases:
        kept = Kept.of(findings, subject)
        return Opening(kept.lead, kept.figure(), kept.table())
    contests = [contest for model in findings.bases if (contest := Contest.of(findings, model))] if not subject else []
    if not contests:
        return Opening()
    return Opening(" ".join(contest.lead for contest in contests), differences(contests), best_table(contests))


# One setting beside its unpruned model, as shrink leaves it


@dataclass(frozen=True)
class Kept:
    """A result, and what both models were measured on. pairs: of the unpruned model and of this one, by column."""

    findings: Findings
    result: Result
    pairs: Mapping[str, tuple[Measure, Measure]]

    @classmethod
    def of(cls, findings: Findings, result: Result) -> Kept:
        ours, theirs = result.measures, findings.bases[result.model].measures
        pairs = {name: (theirs[name], ours[name]) for name in ours if name in theirs}
        shares = [name for name in findings.measured("probe") if name in pairs and pairs[name][1].kind == "share"]
        written = [pairs.pop(name) for name in shares]
        mine = {WRITING: (mean([pair[0] for pair in written]), mean([pair[1] for pair in written]))} if written else {}
        return cls(findings, result, pairs | mine)

    @property
    def lead(self) -> str:
        """Keep it or not and why; what it gains and costs."""
        conclusion = self.findings.runs.conclusion
        decision = conclusion.verdict.rstrip(".") if conclusion else ""
        losses, prices = listed([*self._losses()]), listed([*self._prices()])
        why = f"{decision}: {losses}" if decision and losses else decision or losses
        plan = next((plan for plan in self.result.plans if plan.get("removed")), None)
        gone = f"without {len(plan['removed'])} of {counted(plan['layers'], 'layer')} it" if plan else "it"
        return " ".join(f"{said[0].upper()}{said[1:]}." for said in (why, prices and f"{gone} {prices}") if said)

    def _losses(self) -> Iterator[str]:
        """Say of which text most is lost, and what it writes."""
        lost = {name: ours.loss - theirs.loss for name, (theirs, ours) in self.pairs.items()}
        texts = [(loss, name) for name, loss in lost.items() if not math.isnan(loss)]  # shares have no loss
        if texts:
            most, name = max(texts)
            times = Difference(-most, None, None, "", kind="perplexity").text
            yield f"its {self.findings.title(name)} is {times} the unpruned model's"
        theirs, ours = self.pairs.get(WRITING, (None, None))
        if theirs and ours and theirs.value:
            right, instead = shown(ours.value, "percent"), shown(theirs.value, "percent")
            yield f"{right} of its {WRITING} are right instead of {instead}"

    def _prices(self) -> Iterator[str]:
        """Say what is gained, and what the tasks lose for it."""
        before, after = self._sizes
        if before and after:
            less = shown(1 - after / before, "percent")
            yield f"takes {shown(after, 'bytes')} instead of {shown(before, 'bytes')} ({less} less)"
        if self._speed:
            ends = shown((self._speed["low"], self._speed["high"]), "ratio")
            yield f"writes {shown(self._speed['value'], 'ratio')} times as fast ({ends})"
        name = self.findings.headline
        if name in self.pairs and not name.startswith("perplexity:"):
            theirs, ours = self.pairs[name]
            yield difference(ours, theirs).said(self.findings.title(name))

    @property
    def _sizes(self) -> tuple[float | None, float | None]:
        base = self.findings.bases[self.result.model]
        return self.findings.stored_bytes(base), self.findings.stored_bytes(self.result)

    @property
    def _speed(self) -> Mapping[str, Any] | None:
        """How many times as fast it writes, where whoever ran it timed both models in turns."""
        step = self.result.step("speed")
        return step.result.get("decode") if step else None

    def figure(self) -> Figure | None:
        """Draw the share of the unpruned model's quality that is kept, by each measure."""
        rows = [row for name, (theirs, ours) in self.pairs.items() if (row := self._row(name, theirs, ours))]
        if not rows:
            return None
        title = "What is kept, in % of the unpruned model"
        said = "Accuracy on tasks and generation probes, and likelihood per token. Lines are 95% intervals."
        scale = axis("", [0.0, 1.0, *(dot.value for row in rows for dot in row.dots)], "{:.0%}".format)
        return Figure("first", title, said, dots(rows, title=title, scale=scale))

    def _row(self, name: str, theirs: Measure, ours: Measure) -> Dots | None:
        change, title = difference(ours, theirs), self.findings.title(name)
        low, high = change.interval or (change.change, change.change)
        if ours.kind == "perplexity" and low > 0:
            value, low, high = 1 / change.change, 1 / high, 1 / low
            title = f"likelihood of {title.removeprefix('perplexity on ')}"
        elif ours.kind == "share" and theirs.value:
            value, low, high = (1 + end / theirs.value for end in (change.value, low, high))
        else:
            return None
        return Dots(title, [Dot(OURS, value, low, high, f"{value:.0%} kept")]) if math.isfinite(value) else None

    def table(self) -> Table:
        """Make a row for each measure, for the weights and for the speed."""
        columns = (Column("measure", "text"), Column("unpruned"), Column("shortened"), Column("change"))
        rows = [self._measured(name, theirs, ours) for name, (theirs, ours) in self.pairs.items()]
        before, after = self._sizes
        if before and after:
            cells = JudgedCell(before, "bytes"), JudgedCell(after, "bytes"), JudgedCell(after / before - 1, "percent")
            rows.append(ResultRow((JudgedCell("weights", "text"), *cells, EMPTY)))
        speed = self._speed
        if speed:
            covered = "" if speed["confidence"] >= SURE else f"({shown(speed['confidence'], 'percent')})"
            ends = JudgedCell((speed["low"], speed["high"]), "ratio", note=covered)
            times = JudgedCell(speed["value"], "ratio", note="times"), ends
            rows.append(ResultRow((JudgedCell("decoding speed", "text"), EMPTY, EMPTY, *times)))
        caption = "The change of a perplexity is a factor; of all else, above 0 is better. ± is one standard error."
        interval = Column("95% interval")
        return Table("What is kept", (*columns, interval), (Block("", tuple(rows)),), caption, key="kept")

    def _measured(self, name: str, theirs: Measure, ours: Measure) -> ResultRow:
        label = self.findings.title(name) + (" (%)" if ours.kind == "share" else "")
        apart = difference(ours, theirs)
        change, interval = change_cells(apart)
        cells = (
            JudgedCell.of(theirs),
            JudgedCell.of(ours),
            replace(change, note=apart.unit or UNITS.get(ours.kind, "")),
            interval,
        )
        return ResultRow((JudgedCell(label, "text"), *cells))


# Which of several settings


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
        base = findings.bases[model].measures.get(findings.headline)
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
        return f"{counted(entry.removed, 'layer')}: {self.name(entry)}"

    def _next(self, best: ContestEntry, others: Sequence[ContestEntry]) -> str:
        if not others:
            return ", and no other was measured"
        second, change = others[0], difference(others[0].score, best.score)
        amount = "" if second.removed == best.removed else f"with {counted(second.removed, 'layer')} removed, "
        name = f"the next, {amount}{self.name(second)},"
        if change.p is None:
            return f"; {name} has no standard error to tell them apart"
        return f"; {name} {change.said()}, {_chance(change)}"

    def _worth(self, best: ContestEntry) -> str:
        change = best.change
        apart = f"it {change.said(than='the unpruned model')}, {_chance(change)}"
        if best.worse:
            return f"Keep it only if the smaller size is worth it: {apart}."
        if change.p is None:
            return "Whether it is worse than the unpruned model is not known: there is no standard error."
        if not self.held:
            every = f"every setting with {counted(self.beyond[0], 'layer')} removed is worse"
            return f"It is unclear whether to keep it: {apart}, but {every}."
        rest = f"; with {counted(self.beyond[0], 'layer')} removed every setting is worse" if self.beyond else ""
        return f"It is worth keeping as far as this study can tell: {apart}{rest}."


def _chance(change: Difference) -> str:
    return "which is more than noise" if change.significant else "which may be noise"


def best_table(contests: Sequence[Contest]) -> Table:
    findings, base = contests[0].findings, contests[0].base
    columns = (
        Column("setting", "text"),
        Column(findings.title(findings.headline), base.kind, "%" if base.kind == "share" else ""),
        Column("change", unit=UNITS.get(base.kind, "")),
        Column("95% interval"),
    )
    blocks = [Block(brief(contest.model) if len(contests) > 1 else "", tuple(_rows(contest))) for contest in contests]
    held = any(contest.held for contest in contests)
    which = "of the cut above, then the best of every other" if held else "of all cuts, then the best of each"
    caption = f"The best settings {which}. ± is one standard error."
    return Table("Which setting", columns, blocks, caption, key="best")


def _rows(contest: Contest) -> list[ResultRow]:
    unpruned = JudgedCell(UNPRUNED, "text"), JudgedCell.of(contest.base), EMPTY, EMPTY
    rows = [ResultRow(unpruned, base=True)]
    for entry in contest.shown:
        cells = JudgedCell(contest.row_name(entry), "text"), JudgedCell.of(entry.score), *change_cells(entry.change)
        rows.append(ResultRow(cells, trials=entry.result.numbers))
    return rows


def differences(contests: Sequence[Contest]) -> Figure:
    """Draw the same settings by their difference from the unpruned model."""
    findings, kind = contests[0].findings, contests[0].base.kind
    shown_entries = [(contest, entry) for contest in contests for entry in contest.shown]
    ends = [end for _, entry in shown_entries for end in (entry.change.change, *(entry.change.interval or ()))]
    factor, points = kind == "perplexity", kind == "share"
    level = 1.0 if factor else 0.0
    scale = axis("", [level, *ends], lambda value: f"{100 * value if points else value:.3g}", log=factor)
    rows = [
        Dots(_named(contest, entry), _dot(entry is contest.rivals[0], entry.change), level)
        for contest, entry in shown_entries
    ]
    unit = ", as a factor" if factor else ", in points" if points else ""
    title = f"Change of {findings.title(findings.headline)} from the unpruned model{unit}"
    better = "left" if factor else "right"
    caption = f"Dotted: the unpruned model; {better} of it is better. Bars: 95% intervals of the difference."
    return Figure("first", title, caption, dots(rows, title=title, scale=scale))


def _named(contest: Contest, entry: ContestEntry) -> str:
    model = f"{brief(contest.model, 16)}, " if len(contest.findings.bases) > 1 else ""
    return brief(f"{model}{contest.row_name(entry)}", 84)


def _dot(best: bool, change: Difference) -> list[Dot]:
    if math.isnan(change.change):
        return []
    low, high = change.interval or (change.change, change.change)
    return [Dot(OURS if best else None, change.change, low, high, f"{change.text} {change.within}".rstrip())]
