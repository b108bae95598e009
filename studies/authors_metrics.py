"""Which layers the code of arXiv 2411.15558 removes, where it is not what the paper says: how a metric is added.

    python studies/authors_metrics.py MODEL [--metric bi-authors] [--drop 8] [--seed 42] [--text TEXT] [--samples 10]

A metric is one function and one entry in shortstack.METRICS, here or in scoring/metrics.py; its feed says what the function
gets. Every part of the package then knows it by name. Lists of the authors that these metrics give:

    random-authors        5,6,10,11,15,22,25,26 of 32 layers with seed 42; 6,9,12,16,19,25 of 26 (6 layers)
    magnitude-l1-authors  1,3,4,9-12,14 of Qwen1.5-7B; 0-3,6-8,11 of vicuna-7b-v1.5
    magnitude-l2-authors  1,3-7,9,10 of Qwen1.5-7B; 0,1,3,6-9,11 of vicuna-7b-v1.5
    taylor-authors        22-29 of Llama-3.1-8B-Instruct (10 samples)
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence

from torch import Tensor

import shortstack as ss
from shortstack.scoring.metrics import Metric, taylor

CODE = "code of arXiv 2411.15558"


def random_kept(layers: int, seed: int) -> list[float]:
    """Score so that the layers remain which random.sample(range(layers), layers - k) draws."""
    order = random.Random(seed).sample(range(layers), layers)
    return [float(layers - 1 - order.index(layer)) for layer in range(layers)]


def sum_absolute(weight: Tensor) -> float:
    return float(weight.abs().sum())


def sum_squares(weight: Tensor) -> float:
    """Return the l2 norm without its root."""
    return float(weight.square().sum())


def cosine_parts(before: Tensor, after: Tensor) -> Tensor:
    """Return (x.y, x.x, y.y) of each token, [tokens, 3]: averaged, they make the one cosine of the whole tensor."""
    x, y = before.double(), after.double()
    parts = x.new_zeros((*x.shape[:-1], 3))
    parts[..., 0], parts[..., 1], parts[..., 2] = (x * y).sum(-1), (x * x).sum(-1), (y * y).sum(-1)
    return parts


def one_minus_cosine(parts: Sequence[float]) -> float:
    return 1 - parts[0] / math.sqrt(parts[1] * parts[2])


def named_weight(weight: str, dimensions: int) -> bool:
    """Return whether the authors count a tensor: every `weight`, norms too."""
    return not weight.endswith(".bias") and (dimensions > 2 or "weight" in weight)


AUTHORS = (
    Metric("random-authors", "layers", random_kept, "what random.sample does not keep", CODE, draws=True),
    Metric("magnitude-l1-authors", "weights", sum_absolute, "sum |w|, norms too", CODE, sees=named_weight),
    Metric("magnitude-l2-authors", "weights", sum_squares, "sum w^2, norms too", CODE, sees=named_weight),
    Metric("taylor-authors", "gradient", taylor, "sum |w dL/dw|, norms too", CODE, sees=named_weight),
    Metric("bi-authors", "hidden", cosine_parts, "1 - cos of the flattened tensor", CODE, finish=one_minus_cosine),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--metric", choices=[metric.name for metric in AUTHORS])
    parser.add_argument("--drop", default="8")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args()
    ss.METRICS.update({metric.name: metric for metric in AUTHORS})
    text = ss.Text(options.text, samples=options.samples)
    for metric in AUTHORS:
        if options.metric in (None, metric.name):
            keep = {"keep_last": int(metric.name == "bi-authors")}  # whose code gives the last layer no score
            compute = ss.Compute(seed=options.seed)
            plan = ss.select_layers(options.model, text, metric=metric.name, drop=options.drop, compute=compute, **keep)
            print(f"{metric.name}: {','.join(map(str, plan.removed))}")


if __name__ == "__main__":
    main()
