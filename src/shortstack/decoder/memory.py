"""estimate_memory(): the memory that scoring, repairing, healing or evaluating a model takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.decoder import STREAM_BYTES
from shortstack.decoder.generation import ROWS
from shortstack.decoder.streaming import must_stream
from shortstack.decoder.wrapping import LOGIT_BYTES, arithmetic
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.memory import Memory

WRITTEN_TOKENS = 256  # of a generated text with its prompt
LOGIT_COPIES = 2  # the logits of one chunk of tokens, and their softmax
STATE_BYTES = 16  # of a trained parameter in fp32: itself, its gradient, and AdamW's two means
# Bytes of activations per token, layer and number of the hidden state, in 16 bits (Korthikanti et al., arXiv 2205.05198,
# equation 2 without the attention matrix, which fused attention does not keep).
ACTIVATION_BYTES = 34


@dataclass(frozen=True)
class Training:
    """What training holds. frozen_bytes: of weights that do not train; parameters: that train; tokens: of a micro-batch
    in so many layers.
    """

    frozen_bytes: int
    parameters: int
    tokens: int
    layers: int


def estimate_memory(
    checkpoint: Checkpoint,
    compute: Compute = AUTO,
    *,
    tokens: int = 0,
    streams: float = 1,
    in_turns: bool = False,
    writes: bool = False,
    training: Training | None = None,
    fits: int = 0,
) -> Memory:
    """Estimate the memory of weights, logits, and what the work holds beside them.

    tokens: whose hidden states are held at once, in so many streams. in_turns: as many at a time as STREAM_BYTES hold.
    writes: ROWS texts are generated at once. fits: bytes of closed-form fits.
    """
    device = pick_device(compute.device)
    dtype = arithmetic(compute.dtype, checkpoint, device)
    hidden = int(tokens * streams * checkpoint.hidden_width * dtype.itemsize)
    beside = fits + (min(hidden, STREAM_BYTES) if in_turns else hidden) + LOGIT_COPIES * LOGIT_BYTES[device == "cpu"]
    if writes:
        beside += _written_bytes(checkpoint, dtype)
    if training:
        activations = training.tokens * training.layers * checkpoint.width * ACTIVATION_BYTES
        return Memory(beside + training.frozen_bytes + STATE_BYTES * training.parameters + activations, device)
    if compute.device_map:  # accelerate puts weights wherever there is room
        return Memory(beside, device)
    if must_stream(checkpoint, dtype, device) if compute.stream is None else compute.stream:
        return Memory(beside + _streamed_bytes(checkpoint, dtype, device), device, streamed=True)
    return Memory(beside + _loaded_bytes(checkpoint, dtype, device), device)


def _loaded_bytes(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> int:
    """Count all weights, and on a CPU their files, which are mapped while they are converted."""
    weights = checkpoint.loaded_bytes(dtype)
    converted = device == "cpu" and weights != checkpoint.weight_bytes
    return weights + (checkpoint.weight_bytes if converted and not checkpoint.quantised else 0)


def _streamed_bytes(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> int:
    """Count what surrounds the layers, one layer, and on a CPU two more as they are stored."""
    sizes = checkpoint.sizes
    read = 2 * max(sizes.layer_bytes) if device == "cpu" else 0
    return (sizes.other_parameters + max(sizes.layer_parameters)) * dtype.itemsize + read


def _written_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Count keys and values of ROWS texts, and a few copies of their logits in fp32."""
    text = checkpoint.config.get(checkpoint.anatomy.text_key or "") or checkpoint.config
    heads = text.get("num_attention_heads") or 1
    sharing = min(text.get("num_key_value_heads") or heads, heads)
    token_bytes = 2 * checkpoint.anatomy.layers * checkpoint.hidden_width * dtype.itemsize * sharing // heads
    return ROWS * (token_bytes * WRITTEN_TOKENS + 4 * 4 * checkpoint.vocabulary)
