"""sweep(): what cutting the tail at every depth does, from one walk: exit after each layer through norm and head."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError
from shortstack.measuring import Run, Wanted
from shortstack.metrics import METRICS, checked, perplexity
from shortstack.progress import Progress, silent
from shortstack.tokens import Tokens
from shortstack.walk import Decoder

TOLERATED = math.log(1.5)  # a perplexity half as high again


@dataclass(frozen=True)
class Depth:
    """The model of the first `layers` layers: loss and KL from the unpruned model, in nats per predicted token."""

    layers: int
    loss: float
    perplexity: float
    kl: float


@dataclass(frozen=True)
class Sweep:
    """Every depth, the whole model first.

    knee: how many layers are gone where the curve of the loss bends up; None where it never does.
    max_loss, removable: that many layers can go from the tail before the loss exceeds it.
    """

    depths: tuple[Depth, ...]
    knee: int | None
    max_loss: float
    removable: int
    tokens: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sweep(
    checkpoint: Checkpoint,
    tokens: Tokens,
    *,
    max_loss: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    stream: bool | None = None,
    progress: Progress = silent,
) -> Sweep:
    """Measure the model cut to every number of layers; N layer-forwards and N + 1 heads in all.

    max_loss: nats per token; None is that of a perplexity 1.5 times the unpruned one.

    Raises:
        InputError: max_loss is below the unpruned model's loss.
    """
    started = time.perf_counter()
    decoder = Decoder.open(checkpoint, dtype=dtype, device=device, stream=stream)
    depths = _depths(decoder, tokens, progress)
    losses = [depth.loss for depth in depths]
    allowed = losses[0] + TOLERATED if max_loss is None else max_loss
    if allowed < losses[0]:
        raise InputError(
            "--max-loss",
            expected=f"at least the unpruned model's loss, {losses[0]:.4f}",
            found=str(max_loss),
            fix="allow more, or leave it out",
        )
    removable = next((gone for gone, loss in enumerate(losses) if loss > allowed), len(losses)) - 1
    seconds = round(time.perf_counter() - started, 3)
    return Sweep(depths, knee(losses), allowed, removable, tokens.record(), decoder.dtype, seconds)


def _depths(decoder: Decoder, tokens: Tokens, progress: Progress) -> tuple[Depth, ...]:
    layers = len(decoder.layers)
    tails = {kept: frozenset(range(kept, layers)) for kept in range(layers, 0, -1)}
    wanted = Wanted([METRICS["kl"]], singles=False, sets=list(tails.values()))
    run = Run(decoder, tokens.ids, wanted, progress=progress, stage="sweeping").go()
    losses = {kept: checked(run.losses[tail].value, f"loss of {kept} layers") for kept, tail in tails.items()}
    return tuple(
        Depth(kept, losses[kept], perplexity(losses[kept]), run.divergences[tail].value) for kept, tail in tails.items()
    )


def knee(losses: Sequence[float]) -> int | None:
    """Where a curve that rises bends up: the point farthest below the line from its first to its last (after Kneedle,
    Satopaa et al. 2011); None where no point is below it.

    >>> knee([1.0, 1.1, 1.2, 1.3, 3.0, 5.0])
    3
    >>> knee([1.0, 4.0, 5.0]) is None
    True
    """
    last = len(losses) - 1
    below = [losses[0] + (losses[-1] - losses[0]) * place / max(last, 1) - loss for place, loss in enumerate(losses)]
    deepest = max(range(len(losses)), key=lambda place: (below[place], -place))
    return deepest if below[deepest] > 0 else None
