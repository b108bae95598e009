"""What prune refuses before a byte is written, beyond what the errors' own tests cover."""

import json
import math

import architectures
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
    refused(directory, tmp_path, CheckpointError, r"mlp\.down_proj.weight of shape \(32, 48\), not \(32, 40\)")


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


def test_what_depends_on_depth_is_refused_with_the_values_and_the_nearest_exact_cut(tmp_path):
    """DiffLlama's lambda_init follows the layer's number, which no config field can express: only tails can go."""
    directory = architectures.make("diffllama", tmp_path / "source")
    expected = f"{0.8 - 0.6 * math.exp(-0.3 * 2)!r} to stay.*exact cut: --layers 7"
    refused(directory, tmp_path, ArchitectureError, rf"layer 2, self_attn.lambda_init.*{expected}")


def test_a_constant_that_follows_depth_is_set_so_that_the_kept_layers_compute_what_they_did(tmp_path):
    """MiniCPM3 scales each residual branch by scale_depth / sqrt(depth)."""
    source = Checkpoint.open(architectures.make("minicpm3", tmp_path / "source"))
    pruned = prune(source, plan(8, layers="1,4,6"), tmp_path / "out")
    before, after = (checkpoint.config["scale_depth"] / math.sqrt(n) for checkpoint, n in ((source, 8), (pruned, 5)))
    assert after == pytest.approx(before, rel=1e-15)
    assert pruned.config["scale_depth"] != source.config["scale_depth"]


def test_weights_that_hold_a_block_for_each_layer_lose_those_of_the_removed(tmp_path):
    """Gemma 3n looks up and projects an embedding for every layer at once: [vocabulary, layers * width]."""
    source = Checkpoint.open(architectures.make("gemma3n_text, no shared keys", tmp_path / "source"))
    pruned = prune(source, plan(8, layers="1,4,6"), tmp_path / "out")
    before, after = (load_file(checkpoint.directory / "model.safetensors") for checkpoint in (source, pruned))
    kept = [0, 2, 3, 5, 7]
    for name, axis in (("embed_tokens_per_layer", 1), ("per_layer_model_projection", 0)):
        (key,) = (key for key in before if name in key)
        blocks = before[key].chunk(8, dim=axis)
        assert torch.equal(after[key], torch.cat([blocks[layer] for layer in kept], dim=axis))
    assert sum(source.sizes.layer_parameters) + source.sizes.other_parameters == source.parameters
    assert pruned.parameters == plan(8, layers="1,4,6").sized(source.sizes).parameters.after


def test_what_a_removed_layer_shares_goes_on_with_the_first_that_stays(tmp_path):
    """Zamba stores its one attention block with the first layer that has it."""
    source = Checkpoint.open(architectures.make("zamba", tmp_path / "source"))
    holder = min(int(name.split(".")[2]) for name in source.tensors if ".shared_transf." in name)
    pruned = prune(source, plan(8, layers=str(holder)), tmp_path / "out")
    assert min(int(name.split(".")[2]) for name in pruned.tensors if ".shared_transf." in name) > 0
    assert verify(pruned, against=source).ok


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
