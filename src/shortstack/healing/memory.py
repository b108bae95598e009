"""An estimate of the memory and disk that healing takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shortstack.architecture.anatomy import meta_model
from shortstack.checkpoint import Checkpoint, Model
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import LOGIT_BYTES
from shortstack.errors import InputError
from shortstack.healing.learner import Learner
from shortstack.healing.training import training_device
from shortstack.machine.device import fast_bfloat16
from shortstack.machine.formats import size
from shortstack.machine.memory import Requirements, available_memory

if TYPE_CHECKING:
    from shortstack.healing.config import HealingConfig

STATE_BYTES = 16  # of a trained parameter in fp32: itself, its gradient, and AdamW's two means
# Bytes of activations per token, layer and number of the hidden state, in 16 bits (Korthikanti et al., arXiv 2205.05198,
# equation 2 without the attention matrix, which fused attention does not keep).
ACTIVATION_BYTES = 34
LOGIT_COPIES = 2  # a chunk's logits and their gradient


def estimate_memory(model: Model, config: HealingConfig, *, batch: int | None = None) -> Requirements:
    """Estimate the memory of training and the disk of the output, without loading weights.

    Adds up resident weights, the state of what trains, activations of one micro-batch, and logits. batch: samples per
    forward pass, by default the config's.
    """
    checkpoint, device = Checkpoint.of(model), training_device(config.device)
    dtype, method = compute_dtype(device), config.method
    empty = meta_model(checkpoint.directory, trust_remote_code=checkpoint.trust_remote_code, dtype=dtype)
    decoder, first = Decoder(empty.eval(), checkpoint.anatomy), method.first(checkpoint)
    learner = Learner(decoder, first, method.prepare(checkpoint, decoder))
    frozen_layers = {id(weight) for layer in decoder.layers[:first] for weight in layer.parameters()}
    loaded = {id(weight): weight for weight in decoder.model.parameters() if id(weight) not in frozen_layers}
    training = {id(weight): weight for weight in learner.parameters() if weight.requires_grad}
    resident = sum(weight.nbytes for place, weight in loaded.items() if place not in training)
    state = STATE_BYTES * sum(weight.numel() for weight in training.values())
    tokens = (batch or config.per_device_train_batch_size) * config.max_length
    activations = tokens * decoder.width * (len(decoder.layers) - first) * ACTIVATION_BYTES
    logits = LOGIT_COPIES * LOGIT_BYTES[device == "cpu"]
    return Requirements(resident + state + activations + logits, output_bytes(checkpoint, config), device=device)


def check_memory(checkpoint: Checkpoint, config: HealingConfig) -> None:
    """Refuse a healing that does not fit with one sample at a time."""
    needed = estimate_memory(checkpoint, config, batch=1)
    free = available_memory(needed.device)
    if needed.memory_bytes > free:
        message = (
            f"{config.method.name} takes about {size(needed.memory_bytes)} on {needed.device}, of {size(free)} free"
        )
        raise InputError(f"{message}; train fewer layers, or use lora", option="method")


def output_bytes(checkpoint: Checkpoint, config: HealingConfig) -> int:
    """Return the bytes of the healed weights."""
    return checkpoint.weight_bytes + config.method.added_bytes(checkpoint)


def compute_dtype(device: str) -> torch.dtype:
    """Return the dtype that frozen layers compute in."""
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32
