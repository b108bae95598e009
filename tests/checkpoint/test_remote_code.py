"""A checkpoint that brings its own Python: refused and not run without trust; cut, copied and verified with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import pass_over
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import CheckpointError
from shortstack.pruning import prune, verify

CODE = """
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

Path({marker!r}).write_text("the checkpoint's code ran")


class OursConfig(PretrainedConfig):
    model_type = "ours"

    def __init__(self, vocab_size=96, hidden_size=16, num_hidden_layers=6, scales=None, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.scales = scales or [1.0] * num_hidden_layers
        super().__init__(**kwargs)


class Block(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx, self.scale = layer_idx, config.scales[layer_idx]
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        return hidden_states + self.scale * torch.tanh(self.mix(hidden_states)).cumsum(1)


class OursModel(PreTrainedModel):
    config_class, base_model_prefix = OursConfig, "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Block(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None, use_cache=None, **kwargs):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


class OursForCausalLM(PreTrainedModel):
    config_class, base_model_prefix = OursConfig, "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = OursModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, attention_mask=None, use_cache=None, **kwargs):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids).last_hidden_state))
"""
IDS = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with code that leaves a mark when it runs; its weights are written without running it."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "ours.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    config = {
        "model_type": "ours",
        "architectures": ["OursForCausalLM"],
        "auto_map": {"AutoConfig": "ours.OursConfig", "AutoModelForCausalLM": "ours.OursForCausalLM"},
        "vocab_size": 96,
        "hidden_size": 16,
        "num_hidden_layers": 6,
        "scales": [0.5, 1.0, 0.25, 2.0, 0.75, 1.5],
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = torch.Generator().manual_seed(1)
    shapes = {
        "model.embed.weight": (96, 16),
        "lm_head.weight": (96, 16),
        "model.norm.weight": (16,),
        "model.norm.bias": (16,),
    }
    for layer in range(6):
        shapes |= {f"model.layers.{layer}.mix.weight": (16, 16), f"model.layers.{layer}.mix.bias": (16,)}
    save_file(
        {name: torch.randn(shape, generator=rng) * 0.3 for name, shape in shapes.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def test_without_trust_nothing_runs(source, tmp_path):
    with pytest.raises(CheckpointError, match=r"own Python code.*allow it: trust_remote_code"):
        prune(Checkpoint.open(source), plan(6, layers="1"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_with_trust_the_cut_is_exact_and_brings_the_code_along(source, tmp_path):
    checkpoint = Checkpoint.open(source, trust_remote_code=True)
    pruned = prune(checkpoint, plan(6, layers="1,3"), tmp_path / "out")
    assert (tmp_path / "ran").exists()
    assert (tmp_path / "out" / "ours.py").read_bytes() == (source / "ours.py").read_bytes()
    assert pruned.config["auto_map"] == checkpoint.config["auto_map"]
    assert pruned.config["scales"] == [0.5, 0.25, 0.75, 1.5]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype=torch.float32)
    expected = pass_over(checkpoint.model(dtype=torch.float32), "model.layers", (1, 3))
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, expected(IDS).logits)
    assert verify(pruned, against=checkpoint).ok
