"""Any cut of a model round-trips, and cutting twice is cutting once."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import architectures
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.pruning import prune, verify

NAMES = ("gemma3_text", "deepseek_v3, two layers dense", "qwen2_moe, every second layer sparse")
few = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
keeps = st.sets(st.integers(0, 7), min_size=2, max_size=7).map(sorted)


@functools.cache
def source(name: str) -> Checkpoint:
    folder = tempfile.TemporaryDirectory()
    checkpoint = Checkpoint.open(architectures.make(name, Path(folder.name) / "source"))
    vars(checkpoint)["folder"] = folder  # lives as long as the checkpoint does
    return checkpoint


def without(checkpoint: Checkpoint, removed: list[int], out: Path) -> Checkpoint:
    return prune(checkpoint, plan(checkpoint.anatomy.layers, layers=removed), out) if removed else checkpoint


@pytest.mark.parametrize("name", NAMES)
@few
@given(kept=keeps, data=st.data())
def test_any_cut_is_exact_and_two_cuts_are_one(name, kept, data):
    first = data.draw(st.sets(st.integers(0, 7)).map(lambda extra: sorted({*kept, *extra})))
    with tempfile.TemporaryDirectory() as folder:
        once = without(source(name), [layer for layer in range(8) if layer not in kept], Path(folder) / "once")
        assert verify(once, against=source(name)).ok
        half = without(source(name), [layer for layer in range(8) if layer not in first], Path(folder) / "half")
        rest = [number for number, layer in enumerate(first) if layer not in kept]
        twice = without(half, rest, Path(folder) / "twice")
        weights = [load_file(checkpoint.directory / "model.safetensors") for checkpoint in (once, twice)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
        assert once.config == twice.config
        assert (once.record.get("layer_map") or {}) == (twice.record.get("layer_map") or {})
