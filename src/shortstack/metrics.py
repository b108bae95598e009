"""The catalogue of layer metrics, and the Scores they produce.

A metric is one pure function and one entry in METRICS; its *feed* says what the walk hands it:

    layers   nothing but the layer count and the seed           f(layers, seed)    -> one score per layer
    hidden   the hidden states around each layer                f(before, after)   -> one value per token, averaged
    loss     the mean loss of the model without each layer      f(loss)            -> the layer's score

Low means remove first, always. This file imports no torch: functions only use the methods of the tensors they are given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shortstack.errors import DataError, InputError
from shortstack.jsonfiles import save_json

if TYPE_CHECKING:
    from torch import Tensor

Feed = Literal["layers", "hidden", "loss"]


def random_order(layers: int, seed: int) -> list[float]:
    """Position of each layer in a seeded shuffle; the control every other metric must beat (Lu et al., 3.1).

    >>> sorted(range(32), key=random_order(32, 42).__getitem__)[:8]
    [7, 0, 23, 8, 31, 27, 4, 29]
    """
    order = random.Random(seed).sample(range(layers), layers)
    return [float(order.index(layer)) for layer in range(layers)]


def reverse_order(layers: int, seed: int) -> list[float]:
    """N - 1 - i: the deepest layer goes first, so the lowest k are the tail (Lu et al., 3.1).

    >>> reverse_order(4, seed=0)
    [3.0, 2.0, 1.0, 0.0]
    """
    return [float(layers - 1 - layer) for layer in range(layers)]


def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """1 - cos(x_i, x_{i+1}) of each token, in fp32 (Men et al. 2403.03853, eq. 1; Lu et al., eq. 3).

    before, after: [tokens, width], the hidden states that enter and leave the layer -> [tokens].
    """
    x, y = before.float(), after.float()
    influence: Tensor = 1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    return influence


def perplexity(loss: float) -> float:
    """exp(loss without the layer), loss in nats per predicted token (Kim et al. 2402.02834, eq. 1; Lu et al., 3.1)."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True)
class Metric:
    """A way to score layers: see the module's table for what each feed hands to `function`."""

    name: str
    feed: Feed
    function: Callable[..., Any]
    formula: str
    paper: str


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("random", "layers", random_order, "position in a seeded shuffle", "arXiv 2411.15558, section 3.1"),
        Metric("reverse", "layers", reverse_order, "N - 1 - i (the tail goes first)", "arXiv 2411.15558, section 3.1"),
        Metric("bi", "hidden", block_influence, "mean over tokens of 1 - cos(x_i, x_i+1)", "arXiv 2403.03853, eq. 1"),
        Metric("ppl", "loss", perplexity, "perplexity of the model without layer i", "arXiv 2402.02834, eq. 1"),
    )
}


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if name not in METRICS:
        raise InputError(
            "--metric",
            expected=f"one of {', '.join(METRICS)}",
            found=repr(name),
            fix="`shortstack ls metrics` explains each",
        )
    return METRICS[name]


def metrics_named(names: Iterable[str]) -> list[Metric]:
    """The metrics of those names, each once; `all` stands for every metric there is.

    Raises:
        InputError: there is none of that name.
    """
    chosen = dict.fromkeys(names)
    return [metric_named(name) for name in (METRICS if "all" in chosen else chosen)]


@dataclass(frozen=True)
class Scores:
    """What `score` found: one tuple of `layers` floats per metric, low = remove first.

    base_loss is the unpruned model's loss on the same tokens (nats per predicted token), when a metric needed it.
    tokens and model are the records of what was read (source, digest, sizes): plan and the report quote them.
    """

    layers: int
    scores: dict[str, tuple[float, ...]]
    tokens: dict[str, Any] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    base_loss: float | None = None
    seconds: float = 0.0
    peak_rss_bytes: int = 0

    @property
    def default_metric(self) -> str:
        """What decides when no metric is named: measured loss, else the first one scored."""
        return "ppl" if "ppl" in self.scores else next(iter(self.scores))

    def order(self, metric: str) -> tuple[int, ...]:
        """Layers from the first to remove to the last; ties go to the lower index."""
        if metric not in self.scores:
            raise InputError(
                "--metric",
                expected=f"one of the scored metrics ({', '.join(self.scores)})",
                found=repr(metric),
                fix=f"score again with --metric {metric}",
            )
        return tuple(sorted(range(self.layers), key=lambda layer: (self.scores[metric][layer], layer)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data, with the removal order of each metric beside its scores."""
        data = asdict(self)
        data["scores"] = {name: list(values) for name, values in self.scores.items()}
        data["order"] = {name: list(self.order(name)) for name in self.scores}
        return data

    def save(self, path: str | Path) -> None:
        save_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object) -> Scores:
        """The inverse of to_dict.

        Raises:
            DataError: a key is missing, or a metric does not have one finite score per layer.
        """
        try:
            known = {key: data[key] for key in cls.__dataclass_fields__}
            known["scores"] = {
                name: tuple(math.inf if value is None else float(value) for value in values)
                for name, values in data["scores"].items()
            }
            scores = cls(**known)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                where, expected="the JSON that `shortstack score -o` writes", found=repr(error), fix="score again"
            ) from error
        if type(scores.layers) is not int or not scores.scores:
            raise DataError(
                where, expected="a layer count and at least one metric", found="none", fix="score the model again"
            )
        for name, values in scores.scores.items():
            if len(values) != scores.layers or not all(value > -math.inf for value in values):  # false for NaN, too
                raise DataError(
                    where, expected=f"{scores.layers} numbers for {name}", found=f"{list(values)}", fix="score again"
                )
        return scores
