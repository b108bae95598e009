"""The search for the largest cut that keeps a share of every measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from shortstack.errors import ShortstackError
from shortstack.machine.clock import Clock
from shortstack.shrinking.result import Candidate
from shortstack.shrinking.retention import TRIALS, Share, TriedCut, largest, next_amount


@dataclass(frozen=True)
class Trials:
    """At most TRIALS cuts, as many as there is time for.

    make(amount, until): cut so many layers in that time; kept(cut): the measure of which it keeps least, and what share;
    late(amount, tried): whether it is too late to try another; most: as many layers as may go.
    """

    share: float
    most: int
    clock: Clock
    make: Callable[[int, Clock], Candidate]
    kept: Callable[[Candidate], tuple[str, Share]]
    late: Callable[[int, Sequence[int]], bool]
    tried: dict[int, tuple[TriedCut, Candidate]] = field(default_factory=dict)

    def best(self, first: int) -> Candidate | None:
        """Return the largest cut that keeps enough, with all that were tried; None where none does."""
        amount: int | None = min(first, self.most)
        for trial in range(TRIALS):
            if amount is None or (self.tried and self.late(amount, [*self.tried])):
                break
            made = self.make(amount, self.clock.next(1 / (TRIALS - trial)))
            measure, share = self.kept(made)
            self.tried[amount] = TriedCut(amount, measure, share), made
            amount = next_amount(self._shares, self.share, most=self.most)
        found = largest(self._shares, self.share)
        if found is None:
            return None
        made, count = self.tried[found][1], len(self.tried)
        fewer = [f"cuts that are tried: {count} instead of {TRIALS}"] if amount and count < TRIALS else []
        return replace(made, left_out=(*made.left_out, *fewer), tried=tuple(trial for trial, _ in self.tried.values()))

    @property
    def _shares(self) -> dict[int, float]:
        return {amount: trial.share.value for amount, (trial, _) in self.tried.items()}

    def nothing(self, quality: str, folder: object) -> ShortstackError:
        """Say that none keeps enough."""
        expected = f"a cut that keeps {quality} by every measure"
        fix = f"ask for less, or allow more minutes; what was made stays in {folder}"
        fewest, _ = self.tried[min(self.tried)]
        return ShortstackError(fewest, expected=expected, fix=fix, option="min_quality")
