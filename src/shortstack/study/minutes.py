"""How much of everything fits into the minutes that somebody has: windows to choose on, to repair on, samples, judging.

>>> fitting(Amounts(16, 256, 4000, 64), 60.0, {"windows": Line(10, 1), "repair": Line(1, 0.1), "samples": Line(2, 0.05),
...         "judged": Line(3, 0.01)})
Amounts(windows=8, repair=50, samples=607, judged=64)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple

ENDLESS = 100_000  # samples to heal on, where nothing says how many there are
SHARES = {"windows": 0.3, "repair": 0.1, "judged": 0.1}  # of the time, at most; healing has the rest
WHAT = {
    "windows": "windows of each text to choose on",
    "repair": "windows to repair on",
    "samples": "samples to heal on",
    "judged": "windows of each text to measure on",
}


@dataclass(frozen=True)
class Amounts:
    """What is looked at. windows: of each text, to choose on; repair: windows; samples: to heal on; judged: of each text.

    samples: 0 where nothing heals; judged: None for all that there are.
    """

    windows: int
    repair: int
    samples: int
    judged: int | None

    def left_out(self, wanted: Amounts) -> list[str]:
        """What there is less of than was wanted, in words."""
        return [
            f"{getattr(self, each.name):,} {WHAT[each.name]} in place of {getattr(wanted, each.name) or 'all'}"
            for each in fields(self)
            if getattr(self, each.name) != getattr(wanted, each.name) != ENDLESS
        ]


LEAST = Amounts(4, 16, 40, 8)


class Line(NamedTuple):
    """Seconds that do not depend on the amount, and seconds for each of it."""

    fixed: float
    each: float

    def most(self, seconds: float) -> int:
        """How much of it fits."""
        return int((seconds - self.fixed) / self.each) if self.each else 10**9

    def seconds(self, amount: int) -> float:
        return self.fixed + self.each * amount


def fitting(wanted: Amounts, seconds: float, lines: Mapping[str, Line]) -> Amounts:
    """As much of what is wanted as takes so many seconds, and at least LEAST of it.

    lines: what each of the amounts takes. Choosing, repairing and judging have at most their SHARES; what they leave heals.
    All windows to measure on stay all.
    """
    amounts = wanted
    for name, share in SHARES.items():
        asked, most = getattr(wanted, name), max(getattr(LEAST, name), lines[name].most(share * seconds))
        if asked is not None and most < asked:
            amounts = replace(amounts, **{name: most})
    if wanted.samples:
        rest = seconds - sum(lines[name].seconds(getattr(amounts, name) or 0) for name in SHARES)
        amounts = replace(amounts, samples=min(wanted.samples, max(LEAST.samples, lines["samples"].most(rest))))
    return amounts


def planned_seconds(amounts: Amounts, lines: Mapping[str, Line]) -> float:
    """Seconds that so much takes."""
    return sum(
        lines[name].seconds(amount or 0) for name, amount in asdict(amounts).items() if amount or name != "samples"
    )
