"""A preview of heal(): input checks, what would be trained on how much, and the memory and disk for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.architecture.anatomy import meta_model
from shortstack.checkpoint import Checkpoint
from shortstack.data.sources import OWN
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import LOGIT_BYTES
from shortstack.healing.frozen import check_room, missing_bytes, train_all
from shortstack.healing.healer import HealingRun
from shortstack.healing.iterative import turn_sizes
from shortstack.healing.learner import Learner
from shortstack.healing.schedule import IterativeSchedule
from shortstack.healing.task import HealingTask
from shortstack.healing.unfinished import Unfinished
from shortstack.machine.device import Compute
from shortstack.machine.files import to_jsonable
from shortstack.machine.memory import Requirements
from shortstack.scoring import METRICS

STATE_BYTES = 16  # of a parameter that trains in fp32: itself, its gradient, and AdamW's two means
# Bytes of activations per token, layer and number of the hidden state, in 16 bits (Korthikanti et al., arXiv 2205.05198,
# equation 2 without the attention matrix, which fused attention does not keep).
ACTIVATION_BYTES = 34
LOGIT_COPIES = 2  # a chunk's logits and their gradient


@dataclass(frozen=True)
class Preview:
    """A preview of healing: what would be trained, on how much data.

    tokens: of an epoch. cache_bytes: of what is computed once and not on disk yet. steps: None where the clock decides.
    turns: how many layers go before each turn; all else is then of one turn on the uncut model, an upper bound.
    """

    trainable_parameters: int
    samples: int
    held_out: int
    tokens: int
    steps: int | None
    cache_bytes: int
    turns: tuple[int, ...]
    requirements: Requirements

    def to_dict(self) -> dict[str, Any]:
        """Return all but what the machine needs."""
        values: dict[str, Any] = to_jsonable(self)
        del values["requirements"]
        return values


def preview(
    checkpoint: Checkpoint,
    out: Path,
    task: HealingTask,
    turns: IterativeSchedule | None = None,
    *,
    resume: bool | None = None,
) -> Preview:
    """Read the data; train nothing, let no teacher write, and load no weights but those around the layers."""
    run = HealingRun(checkpoint, task)
    run.check()
    sizes = turn_sizes(checkpoint, turns, task) if turns else []
    writer = run.writer(out)
    if turns and METRICS[turns.metric].needs_text:
        text = turns.calibration.replacing({OWN: "recall"})
        text.tokens(checkpoint.tokenizer(), task.compute.seed)
    examples = run.examples(dry_run=True)
    unfinished = Unfinished(writer.out, "turns" if turns else "training")
    # A teacher that writes, or a clock, would have to say what those were begun with.
    if not (resume and (turns or task.data.own or task.schedule.minutes)):
        unfinished.check(run.record(examples), resume=resume)
    held_out = task.data.held_out_among(examples)
    cached = missing_bytes(run.freezer.planned(examples, run.first))
    check_room(cached)
    outline = Decoder.outline(run.checkpoint, Compute(device=run.device)) if run.first else None
    if outline:
        outline.check_bare(train_all(run.checkpoint))
        outline.check_direct()
    learner, training = _outlined(run), examples[held_out:]
    needed = requirements(run, learner)
    if turns:  # what is cut and what is healed in each of them stays until the end
        needed = replace(needed, disk_bytes=2 * len(sizes) * needed.disk_bytes)
    return Preview(
        learner.trainable_parameters,
        len(examples),
        held_out,
        sum(len(example.ids) for example in training),
        None if task.schedule.minutes else task.schedule.steps(len(training)),
        cached,
        tuple(sizes),
        needed,
    )


def requirements(run: HealingRun, learner: Learner) -> Requirements:
    """Add up resident weights, the state of what trains, activations of one batch, logits, and the output."""
    decoder, task, first = learner.decoder, run.task, learner.first
    frozen_layers = {id(weight) for layer in decoder.layers[:first] for weight in layer.parameters()}
    loaded = {id(weight): weight for weight in decoder.model.parameters() if id(weight) not in frozen_layers}
    training = {id(weight): weight for weight in learner.parameters() if weight.requires_grad}
    resident = sum(weight.nbytes for place, weight in loaded.items() if place not in training)
    state = STATE_BYTES * sum(weight.numel() for weight in training.values())
    tokens = task.schedule.per_device_train_batch_size * task.data.max_length
    activations = tokens * decoder.width * (len(decoder.layers) - first) * ACTIVATION_BYTES
    logits = LOGIT_COPIES * LOGIT_BYTES[run.device == "cpu"]
    return Requirements(resident + state + activations + logits, run.written_bytes, device=run.device)


def _outlined(run: HealingRun) -> Learner:
    """Build the learner on weights without values."""
    source, method = run.checkpoint, run.task.method
    model = meta_model(source.directory, trust_remote_code=source.trust_remote_code, dtype=run.dtype)
    decoder = Decoder(model.eval(), source.anatomy)
    return Learner(decoder, run.first, method.prepare(source, decoder), run.task.objective)
