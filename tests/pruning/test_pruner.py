"""What prune refuses and leaves nothing of, beyond what the errors' own tests cover; and what it copies before it knows."""

import json
import subprocess
import sys

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file

from plans import plan
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.pruning import prune, verify
from shortstack.pruning.pruner import check_fits, kept_tensors
from zoo import make

SINGLE = "model.safetensors"


def edit(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(directory, tmp_path, error, match, *, layers="1"):
    def attempt():
        source = Checkpoint.open(directory)
        prune(source, plan(source.anatomy.layers, layers=layers), tmp_path / "out")

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
    assert {pruned.layer_names.layer_of(name) for name in pruned.tensors} == {None, 0, 1, 2, 3, 4, 5}


def test_extra_heads_named_mtp_go_with_any_cut_and_a_plan_says_so(tmp_path):
    directory = make("llama", tmp_path / "source")
    names = ("mtp.fc", "model.mtp_layers.0.mlp.up_proj", "mtp_dspark.1.norm")
    heads = {f"{name}.weight": torch.randn(4, 5) for name in names}
    save_file({**load_file(directory / SINGLE), **heads}, directory / SINGLE, {"format": "pt"})
    source = Checkpoint.open(directory)
    cut = plan(8, layers="2").sized(source.sizes)
    pruned = prune(source, cut, tmp_path / "out")
    assert not any("mtp" in name for name in pruned.tensors)
    assert (source.sizes.extra_parameters, source.sizes.extra_bytes) == (60, 240)
    assert (cut.parameters.before, cut.parameters.after) == (source.parameters, pruned.parameters)
    assert (cut.bytes.before, cut.bytes.after) == (source.weight_bytes, pruned.weight_bytes)
    assert verify(pruned, against=source).ok


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


RWKV = {
    "5-7": "final norm to stay behind 1 halvings.*found 0 in 5 layers.*exact cut: layers 6-7",
    "1-7": "at least two layers of RWKV",
}


def test_a_cut_that_changes_how_often_rwkv_halves_is_refused(tmp_path):
    directory = architectures.make("rwkv", tmp_path / "source")
    for layers, said in RWKV.items():
        refused(directory, tmp_path, ArchitectureError, said, layers=layers)


@pytest.mark.parametrize(("name", "layers"), [("bamba", "2,5"), ("lfm2", "2,5,7"), ("nemotron_h", "1,5")])
def test_a_hybrid_without_attention_is_refused_since_nothing_counts_cached_tokens(name, layers, tmp_path):
    directory = architectures.make(name, tmp_path / "source")
    refused(directory, tmp_path, ArchitectureError, "expected an attention layer to stay", layers=layers)


def test_a_hybrid_with_one_attention_layer_counts_its_cached_tokens(tmp_path):
    source = Checkpoint.open(architectures.make("bamba", tmp_path / "source"))
    model = prune(source, plan(8, layers="0-1,3-7"), tmp_path / "out").model(dtype=torch.float32)
    ids, options = torch.tensor([[3, 4, 5]]), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached, plain = (model.generate(ids, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, plain)


KINDS = [("smollm3", "0,2-4,6-7"), ("smollm3", "1,5"), ("gemma3_text", "0-4,6-7"), ("gemma3_text", "5")]


@pytest.mark.parametrize(("name", "layers"), KINDS)
def test_every_layer_of_one_kind_may_go(name, layers, tmp_path):
    """Beside its layers a model says which kinds it has (gemma3) or whether any is sliding (smollm3)."""
    source = Checkpoint.open(architectures.make(name, tmp_path / "source"))
    pruned = prune(source, plan(8, layers=layers), tmp_path / "out")
    assert len(set(source.config["layer_types"])) == 2
    assert len(set(pruned.config["layer_types"])) == 1
    assert verify(pruned, against=source).ok


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

    def snapshot(name, *, revision, allow_patterns, local_files_only):
        asked.append((name, revision))
        assert not local_files_only
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


def test_files_that_describe_their_layers_are_refused(tmp_path):
    """As torchao's: the descriptions would be lost, or be of other layers, and transformers could not read the output."""
    folder = make("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    described = {"format": "pt", "model.layers.0.mlp.up_proj.weight": '{"_type": "Int8Tensor"}'}
    save_file(weights, folder / "model.safetensors", metadata=described)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"1 descriptions in its header, as of model.layers.0.mlp.up_proj.weight"):
        prune(checkpoint, plan(8, drop=2), tmp_path / "out")
    with pytest.raises(CheckpointError, match="torchao's form"):
        check_fits(tmp_path / "out", checkpoint, plan(8, drop=2))
    assert not (tmp_path / "out").exists()


BEGUN = """
import sys
from shortstack.checkpoint.writer import CheckpointWriter
begin = CheckpointWriter.begin
def told(self, shards, **options):
    print("torch" in sys.modules, len(shards), file=sys.stderr)
    return begin(self, shards, **options)
CheckpointWriter.begin = told
sys.argv[0] = "shortstack"
from shortstack.cli import main
main()
"""


def test_bytes_move_before_the_cut_is_checked_and_before_torch_is_imported(tmp_path):
    source, out = make("llama", tmp_path / "source"), tmp_path / "out"
    asked = ["prune", str(source), "--layers", "2,5", "-o", str(out), "-q"]
    told = subprocess.run([sys.executable, "-c", BEGUN, *asked], capture_output=True, text=True, check=True).stderr
    assert [line for line in told.splitlines() if line.startswith(("True", "False"))] == ["False 1"]
    assert verify(Checkpoint.open(out), against=Checkpoint.open(source)).ok


def test_what_was_copied_for_another_cut_than_the_checked_one_is_written_anew(tmp_path, monkeypatch):
    """Names alone may mislead: here every layer seems to be the one after it."""
    source = Checkpoint.open(make("llama", tmp_path / "source"))
    cut, begun = plan(source.depth, layers="1"), []
    other = kept_tensors(source, plan(source.depth, layers="2"), {})
    monkeypatch.setattr("shortstack.pruning.pruner._Division.seen", lambda _cut: [other])
    begin = CheckpointWriter.begin
    monkeypatch.setattr(
        CheckpointWriter, "begin", lambda self, shards, **rest: (begun.append(shards), begin(self, shards, **rest))
    )
    pruned = prune(source, cut, tmp_path / "out")
    assert begun == [[other], [kept_tensors(source, cut, {})]]
    assert verify(pruned, against=source).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_cut_that_is_refused_while_it_is_copied_leaves_nothing(tmp_path, monkeypatch):
    source = Checkpoint.open(make("llama", tmp_path / "source"))
    found: list[list[str]] = []

    def refused(*_any: object) -> None:
        found.append(sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()))
        raise ArchitectureError("not it", expected="it", fix="nothing", where="here")

    monkeypatch.setattr("shortstack.pruning.pruner.pruned_config", refused)
    with pytest.raises(ArchitectureError):
        prune(source, plan(source.depth, layers="1"), tmp_path / "new" / "out")
    assert found == [["new", "source"]], "it was being written"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
