"""One setting beside its unpruned model, as shrink leaves it: whether to keep it, at which price."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shortstack.charts.chart import axis
from shortstack.charts.rows import Dot, Dots, dots
from shortstack.machine.formats import counted, listed, shown
from shortstack.machine.tables import Block, Column, Table
from shortstack.report.figures import OURS, Figure
from shortstack.report.findings import Findings
from shortstack.report.judged import EMPTY, JudgedCell, MeasuredChange, ResultRow
from shortstack.report.results import Measure, Result, mean
from shortstack.report.significance import Difference, difference

WRITING = "generation probes"
SURE = 0.93  # an interval of a speed that covers less says so


@dataclass(frozen=True)
class Kept:
    """A result, and what both models were measured on. pairs: of the unpruned model and of this one, by column."""

    findings: Findings
    result: Result
    pairs: Mapping[str, tuple[Measure, Measure]]

    @classmethod
    def of(cls, findings: Findings, result: Result) -> Kept:
        """Pair it with its unpruned model."""
        ours, theirs = result.measures, findings.bases[result.model].measures
        pairs = {name: (theirs[name], ours[name]) for name in ours if name in theirs}
        written = [pairs.pop(name) for name in findings.measured("probe") if name in pairs]
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
        step = self.result.evaluation
        if step and (step.result.get("collapse") or {}).get("collapsed"):
            yield "what it writes has collapsed"
        lost = {name: ours.loss - theirs.loss for name, (theirs, ours) in self.pairs.items()}
        texts = [(loss, name) for name, loss in lost.items() if not math.isnan(loss)]  # shares have no loss
        if texts:
            most, name = max(texts)
            times = MeasuredChange.of(Difference(-most, None, None, ""), "perplexity").text
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
            yield MeasuredChange.of(difference(ours, theirs), ours.kind).said(self.findings.title(name))

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
        if ours.kind == "perplexity":
            kept: Callable[[float], float] = math.exp
            title = f"likelihood of {title.removeprefix('perplexity on ')}"
        elif ours.kind == "share" and theirs.value:
            kept = _share_of(theirs.value)
        else:
            return None
        value, (low, high) = kept(change.value), map(kept, change.interval or (change.value, change.value))
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
        change = MeasuredChange.of(difference(ours, theirs), ours.kind)
        return ResultRow((JudgedCell(label, "text"), JudgedCell.of(theirs), JudgedCell.of(ours), *change.cells))


def _share_of(whole: float) -> Callable[[float], float]:
    """Return what turns a difference from `whole` into the share of it that is kept."""
    return lambda difference: 1 + difference / whole
