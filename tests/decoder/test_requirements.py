"""The memory that a model takes, counted before it is loaded."""

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.generation import ROWS
from shortstack.decoder.requirements import WRITTEN_TOKENS, requirements, writing_requirements
from shortstack.machine.device import Compute
from zoo import make


@pytest.mark.parametrize(("model_type", "shared"), [("opt", 1), ("gpt2", 1), ("llama", 2)])
def test_a_writing_model_holds_keys_and_values_of_every_head_or_of_those_that_share(model_type, shared, tmp_path):
    checkpoint, compute = Checkpoint.open(make(model_type, tmp_path)), Compute(dtype="float32")
    held = writing_requirements(checkpoint, compute).memory_bytes - requirements(checkpoint, compute).memory_bytes
    keys = 8 * 2 * 32 * 4 // shared  # layers, keys and values, numbers, bytes
    assert held == ROWS * (WRITTEN_TOKENS * keys + 4 * 4 * 96)
