"""The catalogue of layer metrics, the order that scores give, and how far two orders agree.

A metric is one pure function and one entry in METRICS; its *feed* says what it is handed:

    layers     nothing but the layer count and the seed         f(layers, seed)     -> one score per layer
    weights    each weight matrix of a layer                    f(weight)           -> a number, added up over the layer
    hidden     the hidden states around each layer              f(before, after)    -> one value per token, averaged
    loss       the mean loss of the model without each layer    f(loss)             -> the layer's score
    kl         the mean KL divergence from the whole model      f(kl)               -> the layer's score
    gradient   each weight matrix and the loss's gradient       f(weight, gradient) -> a number, added up over the layer

`finish` makes the layer's score of what was averaged or added up. Low means remove first, always. This file imports no
torch: functions only use the methods of the tensors they are given. studies/authors_metrics.py adds five by way of example.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shortstack.errors import InputError
from shortstack.machine.numbers import perplexity
from shortstack.machine.options import no_choice

if TYPE_CHECKING:
    from torch import Tensor


Feed = Literal["layers", "weights", "hidden", "loss", "kl", "gradient"]


def removal_order(values: Sequence[float]) -> tuple[int, ...]:
    """Order places from the lowest value to the highest; ties go to the lower place.

    >>> removal_order([3.0, 1.0, 2.0, 1.0])
    (1, 3, 2, 0)
    """
    return tuple(sorted(range(len(values)), key=lambda place: (values[place], place)))


def random_order(layers: int, seed: int) -> list[float]:
    """Place each layer in a seeded shuffle; the control every other metric must beat (Lu et al., 3.1).

    >>> sorted(range(32), key=random_order(32, 42).__getitem__)[:8]
    [7, 0, 23, 8, 31, 27, 4, 29]
    """
    order = random.Random(seed).sample(range(layers), layers)
    return [float(order.index(layer)) for layer in range(layers)]


def reverse_order(layers: int, seed: int) -> list[float]:
    """Score a layer by N - 1 - i: the deepest goes first, so the lowest k are the tail (Lu et al., 3.1).

    >>> reverse_order(4, seed=0)
    [3.0, 2.0, 1.0, 0.0]
    """
    return [float(layers - 1 - layer) for layer in range(layers)]


def sum_absolute(weight: Tensor) -> float:
    """Sum of |w|: the l1 norm of a matrix (Lu et al., 3.1)."""
    return float(weight.abs().sum())


def root_sum_squares(weight: Tensor) -> float:
    """Compute sqrt of the sum of w^2: the l2 norm of a matrix (Lu et al., 3.1)."""
    return float(weight.square().sum().sqrt())


def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """Compute 1 - cos(x_i, x_{i+1}) of each token, in fp32 (Men et al. 2403.03853, eq. 1; Lu et al., eq. 3).

    before, after: [tokens, width], the hidden states that enter and leave the layer -> [tokens].
    """
    return 1 - _cosine(before, after)


def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """Compute arccos(cos(x_l, x_{l+n})) / pi of each token: 0 for one direction, 1 for opposite ones (Gromov et al.
    2403.17887).

    before, after: [tokens, width], the hidden states that enter and leave a block of n layers -> [tokens].
    """
    return _cosine(before, after).clamp(-1, 1).arccos() / math.pi


def relative_magnitude(before: Tensor, after: Tensor) -> Tensor:
    """Compute ||f(x)|| / ||x + f(x)||: how much of what leaves the layer it added (a baseline of Men et al. 2403.03853).

    before, after: [tokens, width] -> [tokens].
    """
    x, y = before.float(), after.float()
    magnitude: Tensor = (y - x).norm(dim=-1) / y.norm(dim=-1)
    return magnitude


def same(value: float) -> float:
    return value


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    x, y = before.float(), after.float()
    cosine: Tensor = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    return cosine


def taylor(weight: Tensor, gradient: Tensor) -> float:
    """Sum of |w * dL/dw|, L the mean loss over all calibration tokens (Lu et al., 3.1)."""
    return float((weight * gradient).abs_().sum())  # a weight in bf16 times a gradient in fp32 is in fp32


def gradient_squares(weight: Tensor, gradient: Tensor) -> float:
    """Sum of (dL/dw)^2."""
    return float(gradient.square().sum())


def is_matrix(weight: str, dimensions: int) -> bool:
    """Return whether a tensor of that name is a matrix, or several, and no causal mask stored as a bias."""
    return dimensions > 1 and not weight.endswith(".bias")


@dataclass(frozen=True)
class Metric:
    """A way to score layers: the module's table says what each feed passes to `function`.

    sees: which tensors the feeds weights and gradient pass, by name and number of dimensions.
    last_token: whether only the last token of each text counts.
    windows: whether it can score blocks of several layers, too.
    draws: whether it draws its scores, so that another seed gives others on the same text.
    """

    name: str
    feed: Feed
    function: Callable[..., Any]
    formula: str
    paper: str
    finish: Callable[[Any], float] = same
    sees: Callable[[str, int], bool] = is_matrix
    last_token: bool = False
    windows: bool = False
    draws: bool = False

    @property
    def needs_scores(self) -> bool:
        """Whether a model is looked at, not its number of layers alone."""
        return self.feed != "layers"

    @property
    def needs_text(self) -> bool:
        """Whether the model is run on text."""
        return self.feed not in ("layers", "weights")


PAPER = "arXiv 2411.15558, section 3.1"
ANGLE = "arccos(cos(x_i, x_i+n)) / pi"
METRICS: dict[str, Metric] = {  # another may be added while a program runs
    metric.name: metric
    for metric in (
        Metric("random", "layers", random_order, "position in a seeded shuffle", PAPER, draws=True),
        Metric("reverse", "layers", reverse_order, "N - 1 - i (the tail goes first)", PAPER),
        Metric("magnitude-l1", "weights", sum_absolute, "sum over matrices of sum |w|", PAPER),
        Metric("magnitude-l2", "weights", root_sum_squares, "sum over matrices of sqrt(sum w^2)", PAPER),
        Metric("taylor", "gradient", taylor, "sum |w dL/dw| over matrices", PAPER),
        Metric("ppl", "loss", perplexity, "perplexity without layer i", "arXiv 2402.02834, eq. 1", windows=True),
        Metric("bi", "hidden", block_influence, "mean over tokens of 1 - cos(x_i, x_i+1)", "arXiv 2403.03853, eq. 1"),
        Metric("kl", "kl", same, "KL(p || p without layer i)", "arXiv 2410.14649, fitness", windows=True),
        Metric("angular", "hidden", angular_distance, f"{ANGLE}, last token", "arXiv 2403.17887",
               last_token=True, windows=True),
        Metric("angular-mean", "hidden", angular_distance, f"{ANGLE}, mean over tokens", "after arXiv 2403.17887",
               windows=True),
        Metric("relative-magnitude", "hidden", relative_magnitude, "mean of |f(x)| / |x + f(x)|", "in arXiv 2403.03853"),
        Metric("gradient", "gradient", gradient_squares, "sqrt(sum (dL/dw)^2) over matrices",
               "arXiv 2411.15558, gradient flow", finish=math.sqrt),
    )
}  # fmt: skip


def metrics_named(names: str | Sequence[str]) -> list[Metric]:
    """Return the metrics of those names, each once; `all` stands for every one.

    names: one after the other, or as text with commas between them.
    """
    listed = [str(name).strip() for name in (names.split(",") if isinstance(names, str) else names)]
    wrong = next((name for name in listed if name not in (*METRICS, "all")), None)
    if wrong is not None or not listed:
        raise InputError(f"no metric {wrong or 'is named'}; {no_choice(wrong or '', METRICS)}", option="metric")
    return [METRICS[name] for name in (METRICS if "all" in listed else dict.fromkeys(listed))]
