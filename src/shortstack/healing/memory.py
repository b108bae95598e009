"""The memory and disk that healing takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shortstack.architecture.anatomy import meta_model
from shortstack.checkpoint import Checkpoint, Model
from shortstack.decoder import Decoder
from shortstack.decoder.memory import Training, estimate_memory
from shortstack.errors import InputError
from shortstack.healing.learner import Learner
from shortstack.healing.training import training_device
from shortstack.machine.device import Compute, fast_bfloat16
from shortstack.machine.memory import Memory

if TYPE_CHECKING:
    from shortstack.healing.config import HealingConfig


def healing_memory(model: Model, config: HealingConfig, *, batch: int | None = None) -> Memory:
    """Estimate the memory of training, without loading weights. batch: samples per forward pass, by default the config's."""
    checkpoint, device = Checkpoint.of(model), training_device(config.device)
    dtype, method = compute_dtype(device), config.method
    empty = meta_model(checkpoint.directory, trust_remote_code=checkpoint.trust_remote_code, dtype=dtype)
    decoder, first = Decoder(empty.eval(), checkpoint.anatomy), method.first(checkpoint)
    learner = Learner(decoder, first, method.prepare(checkpoint, decoder))
    skipped = {id(weight) for layer in decoder.layers[:first] for weight in layer.parameters()}
    loaded = {id(weight): weight for weight in decoder.model.parameters() if id(weight) not in skipped}
    trained = {id(weight): weight for weight in learner.parameters() if weight.requires_grad}
    training = Training(
        sum(weight.nbytes for place, weight in loaded.items() if place not in trained),
        sum(weight.numel() for weight in trained.values()),
        (batch or config.per_device_train_batch_size) * config.max_length,
        len(decoder.layers) - first,
    )
    return estimate_memory(checkpoint, Compute(device=device), training=training)


def check_memory(checkpoint: Checkpoint, config: HealingConfig) -> None:
    """Refuse a healing that does not fit with one sample at a time."""
    needed = healing_memory(checkpoint, config, batch=1)
    try:
        needed.check(config.method.name, "train fewer layers, or use lora")
    except InputError as error:
        raise error.about("method") from None


def output_bytes(checkpoint: Checkpoint, config: HealingConfig) -> int:
    """Return the bytes of the healed weights."""
    return checkpoint.weight_bytes + config.method.added_bytes(checkpoint)


def compute_dtype(device: str) -> torch.dtype:
    """Return the dtype that frozen layers compute in."""
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32
