"""Which layers go, as somebody asks for it: the options of plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shortstack.errors import InputError, parameter
from shortstack.machine.options import check_options, option
from shortstack.planning.layer_sets import check_choice
from shortstack.planning.plans import Plan, plan
from shortstack.scoring.metrics import METRICS, Metric, metric_named
from shortstack.scoring.scores import Scores

if TYPE_CHECKING:
    pass

Fits = Callable[[Sequence[int]], bool]  # whether a model of these kept layers is small enough


@dataclass(frozen=True)
class Choice:
    """Which layers go.

    fits: in place of drop, how small the model must be: as few layers go as leave others that fit.
    """

    metric: str | None = option(None, help=f"How to choose: {', '.join(METRICS)}. Default ppl.")
    drop: str | int | None = option(None, help="How much to remove: 25% (rounded half up) or a count.")
    layers: str | None = option(None, help="Remove exactly these: 22-29,3 (from 0, ranges inclusive).")
    block: bool = option(False, help="Remove one contiguous window.")
    step: int | None = option(None, help="Remove so many at a time, and score again.", minimum=1)
    search: bool = option(False, help="Search for the set that changes the output least.")
    keep_first: int = option(0, help="Never remove the first n layers.", minimum=0)
    keep_last: int = option(0, help="Never remove the last n layers.", minimum=0)
    fits: Fits | None = None

    def __post_init__(self) -> None:
        check_options(self)
        metric_named(self.name)

    @property
    def name(self) -> str:
        """The metric that counts where none is named."""
        return self.metric or "ppl"

    @property
    def by(self) -> Metric:
        return metric_named(self.name)

    @property
    def one_window(self) -> bool:
        """Whether one contiguous window goes: because that was asked for, or since the metric scores nothing else."""
        return self.block or not self.by.singles

    @property
    def needs_text(self) -> bool:
        """Whether the choice depends on what the model computes on a text."""
        return self.layers is None and self.by.needs_text

    @property
    def measures(self) -> bool:
        """Whether shorter models are measured, for which scores of the whole model are not enough."""
        return self.step is not None or self.search

    def check(self) -> None:
        """Say what is wrong before any model is opened.

        Raises:
            InputError: ways to choose that exclude each other.
            PlanError: nothing says how much goes, or what says it cannot be read.
        """
        alone = {"search": ("layers", "block", "step", "metric"), "step": ("layers", "block"), "layers": ("metric",)}
        for name, others in alone.items():
            beside = [other for other in others if getattr(self, name) and getattr(self, other)]
            if beside:
                raise InputError(
                    parameter(name),
                    expected=f"{parameter(name)} without {parameter(beside[0])}",
                    found=f"{parameter(beside[0])} beside it",
                    fix="give one of them",
                )
        if self.fits is None:
            check_choice(self.drop, self.layers, block=self.block)

    def plan(self, source: Scores | int, seed: int = 0) -> Plan:
        """plan() of scores, or of a number of layers by a metric that needs none."""
        named = self.layers is not None
        return plan(
            source,
            drop=self.drop,
            metric=self.metric if named or isinstance(source, Scores) else self.name,
            layers=self.layers,
            block=self.block,
            keep_first=self.keep_first,
            keep_last=self.keep_last,
            seed=seed,
        )

    def like(self, layers: int) -> Plan:
        """A plan of the same size, made at once: what does not fit the model or the disk is said before it is scored."""
        tail = Choice("reverse", self.drop, keep_first=self.keep_first, keep_last=self.keep_last)
        return (self if self.layers is not None else tail).plan(layers)

    def allows(self, layers: int, removed: Set[int]) -> bool:
        """Whether a cut keeps what must be kept, is one window where that was asked for, and leaves what fits."""
        inside = self.keep_first <= min(removed) and max(removed) < layers - self.keep_last
        window = not self.one_window or max(removed) - min(removed) < len(removed)
        small = self.fits is None or self.fits([layer for layer in range(layers) if layer not in removed])
        return inside and window and small
