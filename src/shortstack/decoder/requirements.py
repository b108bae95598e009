"""The memory that computing with a model takes."""

from __future__ import annotations

from dataclasses import replace

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.decoder import STREAM_BYTES
from shortstack.decoder.generation import ROWS
from shortstack.decoder.streaming import check_streamable, must_stream
from shortstack.decoder.wrapping import LOGIT_BYTES, arithmetic
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.memory import Requirements

WRITTEN_TOKENS = 256  # of a text, with what it is written after
LOGIT_COPIES = 2  # the logits of one chunk of tokens, and their softmax


def requirements(
    checkpoint: Checkpoint, compute: Compute, *, tokens: int = 0, streams: float = 1, in_turns: bool = False
) -> Requirements:
    """Count what a model's weights take (all of them, or one layer and two more as stored), its logits, and hidden states.

    tokens: whose hidden states are held at once, in so many streams. in_turns: as many at a time as STREAM_BYTES hold.
    """
    device = pick_device(compute.device)
    dtype = arithmetic(compute.dtype, checkpoint, device)
    weights, streamed = _weights(checkpoint, compute)
    hidden = int(tokens * streams * checkpoint.hidden_width * dtype.itemsize)
    hidden = min(hidden, STREAM_BYTES) if in_turns else hidden
    logits = LOGIT_COPIES * LOGIT_BYTES[device == "cpu"]
    return Requirements(weights + logits + hidden, streamed=streamed, device=device)


def writing_requirements(checkpoint: Checkpoint, compute: Compute) -> Requirements:
    """Count what a writing model takes: keys and values, and a few copies of its logits in fp32, for ROWS texts at once."""
    needed, text = requirements(checkpoint, compute), checkpoint.config.get(checkpoint.anatomy.text_key or "", {})
    heads = (text or checkpoint.config).get("num_attention_heads") or 1
    sharing = (text or checkpoint.config).get("num_key_value_heads") or heads
    itemsize = arithmetic(compute.dtype, checkpoint, needed.device).itemsize
    token_bytes = 2 * checkpoint.anatomy.layers * checkpoint.hidden_width * itemsize * min(sharing, heads) // heads
    written = ROWS * (token_bytes * WRITTEN_TOKENS + 4 * 4 * checkpoint.vocabulary)
    return replace(needed, memory_bytes=needed.memory_bytes + written)


def _weights(checkpoint: Checkpoint, compute: Compute) -> tuple[int, bool]:
    """Count the bytes that weights take, and say whether layers are read one by one, as Decoder.open() decides it."""
    device, sizes = pick_device(compute.device), checkpoint.sizes
    dtype = arithmetic(compute.dtype, checkpoint, device)
    if compute.device_map:  # accelerate puts them wherever there is room
        return 0, False
    if must_stream(checkpoint, dtype, device) if compute.stream is None else compute.stream:
        check_streamable(checkpoint, dtype, device)
        read = 2 * max(sizes.layer_bytes) if device == "cpu" else 0
        return (sizes.other_parameters + max(sizes.layer_parameters)) * dtype.itemsize + read, True
    checkpoint.check_room(dtype, device)
    if checkpoint.config.get("quantization_config"):
        return checkpoint.loaded_bytes(dtype), False
    weights = checkpoint.parameters * dtype.itemsize
    converted = device == "cpu" and weights != checkpoint.weight_bytes  # the files are mapped meanwhile
    return weights + checkpoint.weight_bytes * converted, False
