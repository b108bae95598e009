"""How much of everything fits into the minutes that somebody has: windows to choose on, to repair on, samples, judging.

>>> lines = {"windows": Line(10, 1), "finalists": Line(2, 0.5), "repair": Line(1, 0.1)}
>>> lines |= {"samples": Line(2, 0.05), "judged": Line(3, 0.01)}
>>> fitting(Amounts(16, 5, 256, 4000, 64), 90.0, lines)
Amounts(windows=16, finalists=0, repair=80, samples=987, judged=64, all_judged=False)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from shortstack.planning.layer_sets import repairs_of

ENDLESS = 100_000_000  # samples to heal on, where nothing says how many there are
SHARES = {"windows": 0.3, "repair": 0.1, "judged": 0.1}  # of the time, at most; healing has the rest
WHAT = {
    "windows": "windows of each text to choose on",
    "finalists": "pairs of blocks to repair before one is chosen",
    "repair": "windows to repair on",
    "samples": "samples to heal on",
    "judged": "windows of each text to measure on",
}


@dataclass(frozen=True)
class Amounts:
    """What is looked at. windows: of each text, to choose on; repair: windows; samples: to heal on; judged: of each text.

    finalists: of repaired-blocks. samples: 0 where nothing heals. all_judged: judged is all that there is, and stays.
    """

    windows: int
    finalists: int
    repair: int
    samples: int
    judged: int
    all_judged: bool = False

    def doubled(self) -> Amounts:
        """Twice as much of everything."""
        return Amounts(*(2 * getattr(self, name) for name in WHAT))

    def left_out(self, wanted: Amounts) -> list[str]:
        """What there is less of than was wanted, in words."""
        return [
            f"{what}: {getattr(self, name):,} in place of {getattr(wanted, name):,}"
            for name, what in WHAT.items()
            if getattr(self, name) != getattr(wanted, name) != ENDLESS
        ]


LEAST = Amounts(4, 0, 16, 40, 8)


class Line(NamedTuple):
    """Seconds that do not depend on the amount, and seconds for each of it."""

    fixed: float
    each: float

    def most(self, seconds: float) -> int:
        """How much of it fits."""
        return int((seconds - self.fixed) / self.each) if self.each else 10**9

    def seconds(self, amount: int) -> float:
        return self.fixed + self.each * amount

    def less(self, other: Line) -> Line:
        """Without what another takes."""
        return Line(self.fixed - other.fixed, self.each - other.each)


def fitting(wanted: Amounts, seconds: float, lines: Mapping[str, Line]) -> Amounts:
    """As much of what is wanted as takes so many seconds, and at least LEAST of it.

    lines: what each of the amounts takes, choosing by windows with no finalist, and what each whole repair adds. Choosing,
    repairing and judging have at most their SHARES; what they leave heals. There are as many finalists as leave half of the
    windows that were wanted. All windows to measure on stay all.
    """
    share = SHARES["windows"] * seconds
    half = max(LEAST.windows, wanted.windows // 2)
    finalists = next(
        (some for some in range(wanted.finalists, 0, -1) if _choosing(lines, some).most(share) >= half),
        LEAST.finalists,
    )
    amounts = replace(wanted, finalists=finalists)
    for name, part in SHARES.items():
        line = _choosing(lines, finalists) if name == "windows" else lines[name]
        most = max(getattr(LEAST, name), line.most(part * seconds))
        if most < getattr(wanted, name) and not (name == "judged" and wanted.all_judged):
            amounts = replace(amounts, **{name: most})
    if wanted.samples:
        rest = seconds - planned_seconds(replace(amounts, samples=0), lines)
        amounts = replace(amounts, samples=min(wanted.samples, max(LEAST.samples, lines["samples"].most(rest))))
    return amounts


def planned_seconds(amounts: Amounts, lines: Mapping[str, Line]) -> float:
    """Seconds that so much takes."""
    seconds = _choosing(lines, amounts.finalists).seconds(amounts.windows) + lines["repair"].seconds(amounts.repair)
    healing = lines["samples"].seconds(amounts.samples) if amounts.samples else 0.0
    return seconds + healing + lines["judged"].seconds(amounts.judged)


def _choosing(lines: Mapping[str, Line], finalists: int) -> Line:
    """What windows to choose on take with so many finalists."""
    first, more, repairs = lines["windows"], lines["finalists"], repairs_of(finalists)
    return Line(first.fixed + repairs * more.fixed, first.each + repairs * more.each)
