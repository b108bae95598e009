"""A dry run of healing: what would train, and the memory, disk and time for it, estimated from one layer that is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.writer import COPY_BYTES_PER_S
from shortstack.data import Example
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import STREAM_BYTES
from shortstack.decoder.layer_io import State
from shortstack.decoder.streaming import must_stream
from shortstack.decoder.wrapping import LOGIT_BYTES
from shortstack.healing.frozen import Frozen
from shortstack.healing.healer import HealingRun
from shortstack.healing.learner import Learner, counted
from shortstack.healing.task import HealingTask

STATE_BYTES = 16  # of a parameter that trains in fp32: itself, its gradient, and AdamW's two means
# Bytes of activations per token, layer and number of the hidden state, in 16 bits (Korthikanti et al., arXiv 2205.05198,
# equation 2 without the attention matrix, which fused attention does not keep).
ACTIVATION_BYTES = 34
# Of a training step, in forward passes: 3 by counting operations (a backward pass is twice a forward one), 3.7 measured on
# SmolLM2 with adapters and batches of 2 x 128 tokens on an AMD EPYC, 2026-11-27.
TRAINING_PASSES = 3.7
TRIALS = 3
WRITTEN_TOGETHER = 8  # texts whose next token is timed


@dataclass(frozen=True)
class Forecast:
    """An estimate of what training takes.

    memory_bytes: an upper bound. read_bytes: of weights, in all passes over them; written_bytes: of the result's weights.
    cache_bytes: disk for what is computed once; missing_bytes: the part of it to write.
    turns: how many layers go before each turn; all else is then of one turn on the uncut model, an upper bound.
    """

    trainable_parameters: int
    trained: tuple[str, ...]
    samples: int
    held_out: int
    tokens: int
    learnt_tokens: int
    steps: int
    memory_bytes: int
    read_bytes: int
    written_bytes: int
    cache_bytes: int
    missing_bytes: int
    seconds: float
    turns: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(checkpoint: Checkpoint, task: HealingTask, *, cache: bool = True) -> Forecast:
    """Read the data and time one layer; nothing is trained or written. cache: as for heal().

    Raises:
        as heal(), of what can be known before training.
    """
    run = HealingRun(checkpoint, task)
    run.check()
    examples = run.examples()
    held_out = task.data.held_out_of(len(examples))
    frozen = run.freezer.planned(examples, run.first) if cache else None
    learner = run.learner(run.decoder())
    training = examples[held_out:]
    return Forecast(
        learner.trainable_parameters,
        tuple(learner.names),
        len(examples),
        held_out,
        sum(len(example.ids) for example in training),
        sum(sum(counted(example)) for example in training),
        task.schedule.steps(len(training)),
        _memory(run, learner) + (0 if cache else _frozen_memory(run)),
        _read(run, frozen),
        checkpoint.weight_bytes + task.method.added_bytes(checkpoint),
        frozen.size if frozen else 0,
        frozen.missing_size if frozen else 0,
        _seconds(run, learner.decoder, training, frozen),
    )


def _memory(run: HealingRun, learner: Learner) -> int:
    decoder = learner.decoder
    resident = sum(weight.nbytes for weight in decoder.model.parameters() if not weight.is_meta)
    trained = sum(weight.nbytes for weight in learner.parameters() if weight.requires_grad)
    running = len(decoder.layers) - learner.first
    tokens = run.task.schedule.micro * run.task.data.max_length
    width = decoder.width
    activations = tokens * width * running * ACTIVATION_BYTES
    return int(resident - trained + trained // 4 * STATE_BYTES + activations + 2 * LOGIT_BYTES[run.device == "cpu"])


def _frozen_memory(run: HealingRun) -> int:
    """Bytes of the weights that are held to compute anew, for every batch, what is frozen and what a teacher says."""
    teacher = run.freezer.teacher
    frozen = sum(run.checkpoint.sizes.layer_parameters[: run.first])
    return (frozen + (teacher.parameters if teacher else 0)) * run.dtype.itemsize


def _read(run: HealingRun, frozen: Frozen | None) -> int:
    """Bytes of weights: for digests, of the walks that are to do, of what training holds, and of what is copied."""
    checkpoint, sizes, teacher = run.checkpoint, run.checkpoint.sizes, run.freezer.teacher
    known = checkpoint.weight_bytes + (run.task.unpruned.weight_bytes if run.task.unpruned else 0)
    if frozen is None:
        return known + 2 * checkpoint.weight_bytes + (teacher.weight_bytes if teacher else 0)
    missing = {name for name, file in frozen.files.items() if not file.kept}
    walked = _walked(run, checkpoint, frozen, run.first) if "states" in missing else 0
    if teacher and missing - {"states"}:
        walked += _walked(run, teacher, frozen, teacher.anatomy.layers)
    held = sizes.other_bytes + sum(sizes.layer_bytes[run.first :])
    return known + walked + held + checkpoint.weight_bytes


def _walked(run: HealingRun, model: Checkpoint, frozen: Frozen, layers: int) -> int:
    """Bytes that a walk through the first layers of a model reads: all of it once, or layer by layer in each turn."""
    if not must_stream(model, run.dtype, run.device):
        return model.weight_bytes
    hidden = sum(frozen.lengths) * model.width * run.dtype.itemsize
    return model.sizes.other_bytes + max(1, -(-hidden // STREAM_BYTES)) * sum(model.sizes.layer_bytes[:layers])


def _seconds(run: HealingRun, decoder: Decoder, training: Sequence[Example], frozen: Frozen | None) -> float:
    """Time of the frozen walk, if there is one, of all epochs, and until the weights are on disk.

    frozen: what is computed once; None: all of it is computed in every epoch.
    """
    layer, head = layer_seconds(decoder), head_seconds(decoder)
    tokens, learnt = sum(len(each.ids) for each in training), sum(sum(counted(each)) for each in training)
    teacher = run.freezer.teacher
    walk = tokens * layer * (run.first + (teacher.anatomy.layers if teacher else 0))
    epoch = TRAINING_PASSES * (tokens * layer * (len(decoder.layers) - run.first) + learnt * head)
    epochs = run.task.schedule.passes(len(training))
    walks = epochs if frozen is None else float(frozen.missing_size > 0)
    return walk * walks + epoch * epochs + run.checkpoint.weight_bytes / COPY_BYTES_PER_S


@torch.no_grad()
def layer_seconds(decoder: Decoder, tokens: int = 512) -> float:
    """Seconds of one token through the last layer, forward."""
    ids = torch.zeros(2, tokens // 2, dtype=torch.long, device=decoder.device)
    embedding = decoder.embedding
    hidden = torch.randn(*ids.shape, embedding.shape[1], device=decoder.device).to(embedding.dtype)
    with torch.autocast(decoder.device.type, torch.bfloat16, enabled=embedding.dtype == torch.bfloat16):
        return _fastest(lambda: decoder.step(ids, len(decoder.layers) - 1, [State(hidden, {})])) / tokens


@torch.no_grad()
def head_seconds(decoder: Decoder) -> float:
    """Seconds of the logits of one token."""
    embedding = decoder.embedding
    states = torch.randn(256, embedding.shape[1], device=decoder.device).to(embedding.dtype)
    rows = min(len(states), decoder.chunk_rows(states))
    with torch.autocast(decoder.device.type, torch.bfloat16, enabled=embedding.dtype == torch.bfloat16):
        return _fastest(lambda: decoder.token_logits(states[:rows])) / rows


@torch.no_grad()
def writing_seconds(decoder: Decoder) -> tuple[float, float]:
    """Seconds to write one more token of each of WRITTEN_TOGETHER texts: outside the layers, and in the last one."""
    ids = torch.zeros(WRITTEN_TOGETHER, 1, dtype=torch.long, device=decoder.device)
    last = len(decoder.layers) - 1
    if not decoder.bare:  # other layers would have to run, too
        return head_seconds(decoder) * WRITTEN_TOGETHER, layer_seconds(decoder) * WRITTEN_TOGETHER
    outside = _fastest(lambda: decoder.skipping(ids, frozenset(range(last + 1))))
    return outside, max(0.0, _fastest(lambda: decoder.skipping(ids, frozenset(range(last)))) - outside)


def _fastest(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(TRIALS + 1):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
