"""Which layers go: Scores or a layer count in, Plan out. Pure, and free of torch.

>>> plan(32, metric="reverse", drop="25%").removed
(24, 25, 26, 27, 28, 29, 30, 31)
>>> plan(8, layers="2-3,6").kept
(0, 1, 4, 5, 7)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Sizes
from shortstack.checkpoint.sizes import _not_ours
from shortstack.errors import PlanError, parameter
from shortstack.machine.files import save_json
from shortstack.planning.layer_sets import (
    check_choice,
    check_kept_ends,
    check_removal,
    parse_drop,
    parse_layers,
    staying_ends,
)
from shortstack.scoring import Scores
from shortstack.scoring.metrics import metric_named


@dataclass(frozen=True)
class Change:
    """A quantity before and after the cut."""

    before: int
    after: int


@dataclass(frozen=True)
class Plan:
    """The layers that go and the layers that stay, numbered from 0 in the model the plan is for.

    compared: of a plan that was searched for, the KL divergence from the unpruned model's output on held-out tokens, in nats
    per token, of this plan and of others by name.
    """

    layers: int
    removed: tuple[int, ...]
    strategy: str
    parameters: Change | None = None
    bytes: Change | None = None
    compared: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_removal(self.removed, self.layers, where="plan")

    @property
    def kept(self) -> tuple[int, ...]:
        gone = set(self.removed)
        return tuple(layer for layer in range(self.layers) if layer not in gone)

    def sized(self, sizes: Sizes) -> Plan:
        """The same plan with the parameters and bytes it saves filled in."""
        if len(sizes.layer_bytes) != self.layers:
            raise PlanError(
                "plan",
                expected=f"a plan for the model's {len(sizes.layer_bytes)} layers",
                found=f"a plan for {self.layers} layers",
                fix="make the plan from this model's scores",
            )
        before, after = sizes.of(range(self.layers)), sizes.of(self.kept)
        if self.parameters and self.parameters.before != before[0]:
            raise PlanError(
                "plan",
                expected=f"a plan for this model's {before[0]:,} parameters",
                found=f"a plan for a model of {self.parameters.before:,}",
                fix="make the plan from this model",
            )
        return replace(self, parameters=Change(before[0], after[0]), bytes=Change(before[1], after[1]))

    def to_dict(self) -> dict[str, Any]:
        def change(value: Change | None) -> dict[str, int] | None:
            return None if value is None else {"before": value.before, "after": value.after}

        return {
            "layers": self.layers,
            "removed": list(self.removed),
            "kept": list(self.kept),
            "strategy": self.strategy,
            "parameters": change(self.parameters),
            "bytes": change(self.bytes),
            "compared": None if self.compared is None else dict(self.compared),
        }

    def save(self, path: str | Path) -> None:
        save_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object) -> Plan:
        """The inverse of to_dict.

        Raises:
            DataError: a key is missing or of the wrong type.
            PlanError: the layers named cannot be removed.
        """
        try:
            layers, removed, strategy = data["layers"], tuple(data["removed"]), str(data["strategy"])
            changes = [None if data.get(key) is None else Change(**data[key]) for key in ("parameters", "bytes")]
        except (KeyError, TypeError) as error:
            raise _not_ours(where, "plan", repr(error)) from error
        sizes = [size for change in changes if change for size in (change.before, change.after)]
        if any(type(size) is not int for size in sizes):
            raise _not_ours(where, "plan", f"sizes {sizes}")
        compared = data.get("compared")
        if not (compared is None or (isinstance(compared, dict) and {*map(type, compared.values())} <= {int, float})):
            raise _not_ours(where, "plan", f"compared {compared!r}")
        if any(type(number) is not int for number in (layers, *removed)):
            raise _not_ours(where, "plan", f"layers {layers!r}, removed {list(removed)!r}")
        check_removal(removed, layers, where=where)
        parameters, weights = changes
        return cls(layers, removed, strategy, parameters, weights, compared)


def plan(
    source: Scores | int,
    *,
    drop: str | int | None = None,
    metric: str | None = None,
    layers: str | Sequence[int] | None = None,
    block: bool = False,
    keep_first: int = 0,
    keep_last: int = 0,
    seed: int = 0,
) -> Plan:
    """Choose the layers to remove.

    source: Scores, or the number of layers for plans that need no scores (reverse, random, explicit layers).
    drop: "25%" (rounded half up) or a count. Lowest scores of `metric` go first; with `block`, one contiguous window: the
    one with the lowest score where windows of that size were scored, else the one whose layers' scores have the lowest sum.
    A metric that scores windows alone chooses one, too. The first `keep_first` and last `keep_last` layers always stay.

    Raises:
        PlanError: nothing, everything, or something that does not exist would be removed.
    """
    count = source if isinstance(source, int) else source.layers
    if keep_first < 0 or keep_last < 0:
        raise PlanError(
            f"{parameter('keep_first')}, {parameter('keep_last')}",
            expected="numbers of layers",
            found=f"{keep_first}, {keep_last}",
            fix="write 0 or more",
        )
    check_choice(drop, layers, block=block)
    if layers is not None:
        named = parse_layers(layers) if isinstance(layers, str) else tuple(layers)
        check_removal(named, count, where=parameter("layers"))
        removed = tuple(sorted(named))
        check_kept_ends(removed, count, keep_first, keep_last)
        return Plan(count, removed, "layers")
    amount = parse_drop(drop or 0, count)
    allowed = staying_ends(count, amount, keep_first, keep_last)
    name, values = _values(source, metric, seed)
    if block or not values:
        return Plan(count, *_block(source, name, values, allowed, amount))
    strategy = "tail" if name == "reverse" and not keep_last else f"lowest {name}"
    return Plan(count, lowest(values, allowed, amount), strategy)


def _values(source: Scores | int, metric: str | None, seed: int) -> tuple[str, Sequence[float]]:
    """The metric and its score of each layer; none where it scored windows alone."""
    if isinstance(source, Scores):
        name = metric or source.default_metric
        if name not in source.scores and name in source.window_scores:
            return name, ()
        source.order(name)  # raises for a metric that was not scored
        return name, source.scores[name]
    name = metric or "reverse"
    found = metric_named(name)
    if found.needs_scores:
        raise PlanError(
            parameter("metric"),
            expected="scores for this metric",
            found=f"{name} without scores",
            fix=f"score again with {parameter('metric', name)} first",
        )
    return name, found.function(source, seed)


def lowest(values: Sequence[float], allowed: Sequence[int], amount: int) -> tuple[int, ...]:
    """The `amount` allowed layers with the lowest values, ties to the lower index.

    >>> lowest([3.0, 1.0, 2.0, 1.0], range(4), 2)
    (1, 3)
    """
    return tuple(sorted(sorted(allowed, key=lambda layer: (values[layer], layer))[:amount]))


def _block(
    source: Scores | int, name: str, values: Sequence[float], allowed: range, amount: int
) -> tuple[tuple[int, ...], str]:
    """The window to remove, and how it was chosen: by its own score where there is one."""
    if isinstance(source, Scores):
        if source.window == amount and name in source.window_scores:
            return lowest_window(source.window_scores[name], allowed, amount), f"block {name}, measured"
        if not values:
            raise PlanError(
                parameter("drop"),
                expected=f"{source.window} layers, the size of the blocks that {name} scored",
                found=str(amount),
                fix=f"write {parameter('drop', source.window)}, or score again with {parameter('window', amount)}",
            )
    sums = [sum(values[first : first + amount]) for first in range(len(values) - amount + 1)]
    return lowest_window(sums, allowed, amount), f"block {name}"


def lowest_window(values: Sequence[float], allowed: range, amount: int) -> tuple[int, ...]:
    """The window of `amount` allowed layers with the lowest value, of one value for each place a window may start.

    >>> lowest_window([3.0, 1.0, 2.0], range(4), 2)
    (1, 2)
    """
    starts = allowed[: len(allowed) - amount + 1]
    start = min(starts, key=lambda first: (values[first], first))
    return tuple(range(start, start + amount))
