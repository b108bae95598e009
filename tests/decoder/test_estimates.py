"""The memory that a model takes, counted before it is loaded."""

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.decoder import STREAM_BYTES
from shortstack.decoder.generation import ROWS
from shortstack.decoder.memory import WRITTEN_TOKENS, Training, estimate_memory
from shortstack.decoder.wrapping import LOGIT_BYTES
from shortstack.machine.device import Compute
from zoo import make, tiny

FP32 = Compute(device="cpu", dtype="float32")
LOGITS = 2 * LOGIT_BYTES[1]


@pytest.mark.parametrize(("model_type", "shared"), [("opt", 1), ("gpt2", 1), ("llama", 2)])
def test_a_writing_model_holds_keys_and_values_of_the_heads_that_have_some(model_type, shared, tmp_path):
    checkpoint = Checkpoint.open(make(model_type, tmp_path))
    held = estimate_memory(checkpoint, FP32, writes=True).nbytes - estimate_memory(checkpoint, FP32).nbytes
    keys = 8 * 2 * 32 * 4 // shared  # layers, keys and values, numbers, bytes
    assert held == ROWS * (WRITTEN_TOKENS * keys + 4 * 4 * 96)


def test_each_kind_of_work_adds_what_it_holds():
    checkpoint = Checkpoint.open(tiny("llama"))
    weights, hidden, layer = checkpoint.weight_bytes, 1000 * 32 * 4, max(checkpoint.sizes.layer_bytes)
    around = weights - 8 * layer

    def estimate(**work):
        return estimate_memory(checkpoint, work.pop("compute", FP32), **work).nbytes - LOGITS

    assert estimate() == weights
    assert estimate(compute=Compute(device="cpu", dtype="bfloat16")) == weights // 2 + weights, "files are mapped"
    assert estimate(tokens=1000, streams=2.5, fits=7) == weights + 2.5 * hidden + 7
    assert estimate(tokens=10**9, in_turns=True) == weights + STREAM_BYTES
    streamed = Compute(device="cpu", dtype="float32", stream=True)
    assert estimate(compute=streamed) == around + 3 * layer
    assert estimate_memory(checkpoint, streamed).streamed
    training = Training(frozen_bytes=9, parameters=500, tokens=1000, layers=2)
    assert estimate(training=training) == 9 + 500 * 16 + 1000 * 32 * 2 * 34
