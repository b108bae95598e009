"""What prune refuses before a byte is written, beyond what the errors' own tests cover."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.planning import plan
from shortstack.pruning import prune
from shortstack.verification import verify
from zoo import make


def edit(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(directory, tmp_path, error, match):
    def attempt():
        source = Checkpoint.open(directory)
        prune(source, plan(source.anatomy.layers, layers="1"), tmp_path / "out")

    with pytest.raises(error, match=match):
        attempt()
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]


def test_files_with_more_layers_than_the_config_are_not_taken_for_extra_heads(tmp_path):
    directory = make("llama", tmp_path / "source")
    edit(directory, num_hidden_layers=5)
    refused(directory, tmp_path, CheckpointError, "layers 0 to 4.*layer 7")


def test_declared_extra_heads_go_with_the_cut(tmp_path):
    directory = make("llama", tmp_path / "source")
    edit(directory, num_hidden_layers=7, num_nextn_predict_layers=1)
    pruned = prune(Checkpoint.open(directory), plan(7, layers="2"), tmp_path / "out")
    assert pruned.config["num_nextn_predict_layers"] == 0
    assert {pruned.layer_of(name) for name in pruned.tensors} == {None, 0, 1, 2, 3, 4, 5}


def test_weights_of_another_shape_than_the_config_are_refused(tmp_path):
    directory = make("llama", tmp_path / "source")
    edit(directory, intermediate_size=40)
    refused(directory, tmp_path, CheckpointError, r"mlp\.\w+_proj.weight of shape")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    directory = make("llama", tmp_path / "source", max_shard_size="40KB")
    shards = sorted(directory.glob("*.safetensors"))
    first = load_file(shards[0])
    save_file({**load_file(shards[1]), **dict([next(iter(first.items()))])}, shards[1])
    refused(directory, tmp_path, CheckpointError, "in several")


def test_a_quantisation_that_names_layers_by_pattern_is_refused(tmp_path):
    directory = make("llama", tmp_path / "source")
    edit(directory, quantization_config={"quant_method": "x", "ignore": [r"re:.*layers\.3\.mlp.*"]})
    refused(directory, tmp_path, ArchitectureError, "regular expression")


def test_what_depends_on_depth_is_refused_with_the_layer_and_the_values(tmp_path):
    """minicpm3 scales each layer by 1/sqrt(N): a cut changes every layer that stays."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING["minicpm3"](
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=8,
        scale_depth=1.4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    refused(tmp_path / "source", tmp_path, ArchitectureError, "layer 0")


def test_further_chat_templates_travel_and_are_verified(tmp_path):
    directory = make("llama", tmp_path / "source")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    pruned = prune(Checkpoint.open(directory), plan(8, layers="2"), tmp_path / "out")
    copied = tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja"
    assert copied.read_text() == "{{ tools }}"
    assert verify(pruned).ok
    copied.write_text("{{ other }}")
    assert not verify(Checkpoint.open(tmp_path / "out")).ok


def test_a_hub_model_is_the_snapshot_of_its_revision_and_pickles_alone_are_refused(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert not any(pattern.endswith((".bin", ".pt", ".pth")) for pattern in allow_patterns)
        return str(tmp_path / name.rpartition("/")[2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    make("llama", tmp_path / "good")
    checkpoint = Checkpoint.open("some/good", revision="v2")
    assert (checkpoint.source, checkpoint.revision, checkpoint.anatomy.layers) == ("some/good", "v2", 8)
    assert asked == [("some/good", "v2")]
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"python -c .*some/pickled.*pickled-safetensors"):
        Checkpoint.open("some/pickled")
