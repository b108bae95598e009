"""A checkpoint that brings its own Python: refused and not run without trust; cut, copied and verified with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import pass_over
from transformers import AutoModelForCausalLM

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import CheckpointError
from shortstack.pruning import prune, verify
from zoo import edit_config, make

CODE = """
from pathlib import Path

from .parts import VOCABULARY

from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).write_text("the checkpoint's code ran")


class OursConfig(LlamaConfig):
    model_type = "ours"

    def __init__(self, scales=(), **kwargs):
        super().__init__(**kwargs)
        self.scales = list(scales)


class OursForCausalLM(LlamaForCausalLM):
    config_class = OursConfig

    def __init__(self, config):
        super().__init__(config)
        for layer, scale in zip(self.model.layers, config.scales, strict=True):
            layer.self_attn.scaling *= scale
"""
BESIDE = {"own.tiktoken": True, "other.tiktoken": False, "notes.py": False, "token.json": False}  # code names the first
SCALES = [0.5, 1.0, 0.25, 2.0, 0.75, 1.5, 3.0, 0.1]
IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with code that leaves a mark when it runs; its weights are written without running it."""
    folder = make("llama", tmp_path / "source")
    (folder / "ours.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    (folder / "parts.py").write_text('VOCABULARY = "own.tiktoken"\n')
    for name in BESIDE:
        (folder / name).write_text("1")
    names = {"AutoConfig": "ours.OursConfig", "AutoModelForCausalLM": "ours.OursForCausalLM"}
    edit_config(folder, model_type="ours", architectures=["OursForCausalLM"], auto_map=names, scales=SCALES)
    return folder


def test_without_trust_nothing_runs(source, tmp_path):
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        prune(Checkpoint.open(source), plan(8, layers="1"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_with_trust_the_cut_is_exact_and_brings_the_code_along(source, tmp_path):
    checkpoint = Checkpoint.open(source, trust_remote_code=True)
    pruned = prune(checkpoint, plan(8, layers="1,3"), tmp_path / "out")
    assert (tmp_path / "ran").exists()
    for name in ("ours.py", "parts.py"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert {name: (tmp_path / "out" / name).exists() for name in BESIDE} == BESIDE
    assert pruned.config["auto_map"] == checkpoint.config["auto_map"]
    assert pruned.config["scales"] == [0.5, 0.25, *SCALES[4:]]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype=torch.float32)
    expected = pass_over(checkpoint.model(dtype=torch.float32), "model.layers", (1, 3))
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, expected(IDS).logits)
    assert verify(pruned, base=checkpoint).ok
