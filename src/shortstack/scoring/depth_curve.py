"""sweep(): what cutting the tail at every depth does, from one walk: exit after each layer through norm and head."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens, read_questions
from shortstack.data.questions import TokenizedQuestion, questions_sha256, tokenize_questions
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import Route
from shortstack.decoder.multiple_choice import Accuracy, answers
from shortstack.errors import DataError, InputError, parameter
from shortstack.evaluation import Tasks, load_harness
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.numbers import checked, perplexity
from shortstack.machine.progress import Progress, silent
from shortstack.repairing.cut_families import repaired_tails
from shortstack.repairing.fit import HELD_OUT, divided
from shortstack.scoring.measurement import Run, Wanted
from shortstack.scoring.metrics import METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TOLERATED = math.log(1.5)  # a perplexity half as high again


@dataclass(frozen=True)
class Depth:
    """The model of the first `layers` layers: loss and KL from the unpruned model, in nats per predicted token.

    accuracy, accuracy_stderr: of multiple choice, where there were questions. repaired_*: with the last layer refitted.
    """

    layers: int
    loss: float
    perplexity: float
    kl: float
    accuracy: float | None = None
    accuracy_stderr: float | None = None
    repaired_loss: float | None = None
    repaired_perplexity: float | None = None
    repaired_kl: float | None = None


@dataclass(frozen=True)
class Sweep:
    """Every depth, the whole model first.

    knee: how many layers are gone where the curve of the loss bends up; None where it never does.
    max_loss, removable: that many layers can go from the tail before the loss exceeds it; with repair removable_repaired.
    """

    depths: tuple[Depth, ...]
    knee: int | None
    max_loss: float
    removable: int
    removable_repaired: int | None = None
    tokens: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] | None = None
    dtype: str = "float32"
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sweep(
    checkpoint: Checkpoint,
    tokens: Tokens,
    *,
    max_loss: float | None = None,
    task: str | Path | Tasks | None = None,
    repair: bool = False,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Sweep:
    """Measure the model cut to every number of layers; N layer-forwards and N + 1 heads in all.

    max_loss: nats per token; None is that of a perplexity 1.5 times the unpruned one. task: a .jsonl file of multiple choice
    (choices.LAYOUT), or one standard multiple-choice task, answered at every depth by a second walk. repair: also refit the
    last layer of each depth, on three samples of four (as repaired_tails()); all is then measured on the fourth alone.

    Raises:
        DataError: the task cannot be read, or its documents cannot be had.
        InputError: max_loss is below the unpruned model's loss.
    """
    started = time.perf_counter()
    if repair and len(tokens.ids) < 2 * HELD_OUT:
        raise DataError(
            tokens.source,
            expected=f"at least {2 * HELD_OUT} samples to repair on",
            found=str(len(tokens.ids)),
            fix=f"give more text, or a smaller {parameter('length')}",
        )
    questions, told = _asked(task, checkpoint.tokenizer()) if task else ([], None)
    decoder = Decoder.open(checkpoint, compute)
    fitting, judging = divided(tokens.ids) if repair else (tokens.ids[:0], tokens.ids)
    run = _walked(checkpoint, decoder, judging, progress)
    depths = _depths(run)
    losses = [depth.loss for depth in depths]
    allowed = _allowed(losses[0], max_loss)
    if repair:
        depths = _with_repair(depths, repaired_tails(decoder, fitting, judging, progress=progress))
    if questions:
        depths = _with_accuracy(depths, answers(decoder, questions, tails(run.layers), progress=progress))
    repaired = [depth.repaired_loss for depth in depths if depth.repaired_loss is not None]
    return Sweep(
        depths,
        knee(losses),
        allowed,
        _removable(losses, allowed),
        _removable(repaired, allowed) if repaired else None,
        tokens.record(),
        told,
        decoder.dtype,
        round(time.perf_counter() - started + run.seconds_before, 3),
    )


def _with_repair(depths: Sequence[Depth], found: Sequence[tuple[float, float]]) -> tuple[Depth, ...]:
    """found: loss and KL of the first 1, 2, ... layers; depths begin with all of them."""
    return tuple(
        replace(depth, repaired_loss=loss, repaired_perplexity=perplexity(loss), repaired_kl=kl)
        for depth, (loss, kl) in zip(depths, reversed(found), strict=True)
    )


def _with_accuracy(depths: Sequence[Depth], found: Mapping[Route, Accuracy]) -> tuple[Depth, ...]:
    return tuple(
        replace(depth, accuracy=found[tail].value, accuracy_stderr=found[tail].stderr)
        for depth, tail in zip(depths, tails(len(depths)), strict=True)
    )


def _allowed(unpruned: float, max_loss: float | None) -> float:
    """The loss that is tolerated."""
    allowed = unpruned + TOLERATED if max_loss is None else max_loss
    if not unpruned <= allowed < math.inf:  # false for NaN, too
        raise InputError(
            parameter("max_loss"),
            expected=f"at least the unpruned model's loss, {unpruned:.4f}",
            found=str(max_loss),
            fix="allow more, or leave it out",
        )
    return allowed


def _removable(losses: Sequence[float], allowed: float) -> int:
    return next((gone for gone, loss in enumerate(losses) if loss > allowed), len(losses)) - 1


def _asked(
    task: str | Path | Tasks | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedQuestion], dict[str, Any] | None]:
    """The questions as tokens, and what the result says of them."""
    if task is None:
        return [], None
    if isinstance(task, Tasks):
        loaded = task.only()
        found, source, sha256 = (
            load_harness().questions(loaded, tokenizer, task.limit),
            loaded.name,
            loaded.digest(task.limit),
        )
    else:
        questions = read_questions(task)
        found, source, sha256 = tokenize_questions(questions, tokenizer), str(task), questions_sha256(questions)
    return found, {"source": source, "questions": len(found), "sha256": sha256}


def _walked(checkpoint: Checkpoint, decoder: Decoder, ids: Tensor, progress: Progress) -> Run:
    wanted = Wanted([METRICS["kl"]], singles=False, sets=tails(len(decoder.layers)))
    return Run(decoder, ids, wanted, progress=progress, stage="sweeping").kept_by(checkpoint).go()


def _depths(run: Run) -> tuple[Depth, ...]:
    found = []
    for tail in tails(run.layers):
        kept = run.layers - len(tail)
        loss = checked(run.losses[tail].value, f"loss of {kept} layers")
        found.append(Depth(kept, loss, perplexity(loss), run.divergences[tail].value))
    return tuple(found)


def tails(layers: int) -> list[Route]:
    """What is cut at every depth: nothing, the last layer, the last two, and so on until one is left.

    >>> [sorted(tail) for tail in tails(3)]
    [[], [2], [1, 2]]
    """
    return [frozenset(range(kept, layers)) for kept in range(layers, 0, -1)]


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
