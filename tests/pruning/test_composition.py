"""Any cut of a model round-trips, and cutting twice is cutting once."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import architectures
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError
from shortstack.pruning import prune, verify

NAMES = (
    "llama",
    "qwen2_moe, every second layer sparse",
    "gemma3_text",
    "smollm3, every third layer without positions",
    "deepseek_v3, two layers dense",
    "gemma3n_text, no shared keys",
    "jamba, attention in two layers",
    "recurrent_gemma, two recurrent then attention",
    "qwen3_next, every second layer full",
)
# Not any keep-list: a config may say a layer's kind by its number, and a cache counts tokens in attention layers.
REFUSABLE = {"jamba", "recurrent_gemma", "qwen3_next"}
few = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
keeps = st.sets(st.integers(0, 7), min_size=2, max_size=7).map(sorted)


@functools.cache
def source(name: str) -> Checkpoint:
    folder = tempfile.TemporaryDirectory()
    checkpoint = Checkpoint.open(architectures.make(name, Path(folder.name) / "source"))
    vars(checkpoint)["folder"] = folder  # lives as long as the checkpoint does
    return checkpoint


def without(checkpoint: Checkpoint, removed: list[int], out: Path) -> Checkpoint:
    if not removed:
        return checkpoint
    try:
        return prune(checkpoint, plan(checkpoint.anatomy.layers, layers=removed), out)
    except ArchitectureError:
        assert checkpoint.anatomy.model_type in REFUSABLE
        assert not out.exists()
        reject()


@pytest.mark.parametrize("name", NAMES)
@few
@given(kept=keeps)
def test_any_cut_computes_what_the_source_computes_without_those_layers(name, kept):
    with tempfile.TemporaryDirectory() as folder:
        pruned = without(source(name), [layer for layer in range(8) if layer not in kept], Path(folder) / "out")
        assert verify(pruned, against=source(name)).ok


@pytest.mark.parametrize("name", NAMES)
@few
@given(kept=keeps, data=st.data())
def test_two_cuts_are_one(name, kept, data):
    first = data.draw(st.sets(st.integers(0, 7)).map(lambda extra: sorted({*kept, *extra})))
    with tempfile.TemporaryDirectory() as folder:
        once = without(source(name), [layer for layer in range(8) if layer not in kept], Path(folder) / "once")
        half = without(source(name), [layer for layer in range(8) if layer not in first], Path(folder) / "half")
        rest = [number for number, layer in enumerate(first) if layer not in kept]
        twice = without(half, rest, Path(folder) / "twice")
        weights = [load_file(checkpoint.directory / "model.safetensors") for checkpoint in (once, twice)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
        assert once.config == twice.config
        assert (once.record.get("layer_map") or {}) == (twice.record.get("layer_map") or {})
