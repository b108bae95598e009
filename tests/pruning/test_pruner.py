"""Cuts that prune refuses without a trace, beyond what the errors' own tests cover; what it copies before it knows; and that
any cut is exact, and two cuts are one.
"""

import functools
import tempfile
from pathlib import Path

import architectures
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from plans import plan
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.pruning import prune, verify
from shortstack.pruning.pruner import kept_tensors
from zoo import edit_config, make

SINGLE = "model.safetensors"


def assert_refused(directory, tmp_path, error, match, *, layers="1"):
    def attempt():
        source = Checkpoint.open(directory)
        prune(source, plan(source.anatomy.layers, layers=layers), tmp_path / "out")

    with pytest.raises(error, match=match):
        attempt()
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]


def test_files_with_more_layers_than_the_config_are_not_taken_for_extra_heads(tmp_path):
    directory = make("llama", tmp_path / "source")
    edit_config(directory, num_hidden_layers=5)
    assert_refused(directory, tmp_path, CheckpointError, "layers 0 to 4.*layer 7")


def test_declared_extra_heads_go_with_the_cut(tmp_path):
    directory = make("llama", tmp_path / "source")
    edit_config(directory, num_hidden_layers=7, num_nextn_predict_layers=1)
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


def test_a_hybrid_without_attention_is_refused_since_nothing_counts_cached_tokens(tmp_path):
    directory = architectures.make("bamba", tmp_path / "source")
    assert_refused(directory, tmp_path, ArchitectureError, "expected an attention layer to stay", layers="2,5")


KINDS = [("smollm3", "0,2-4,6-7"), ("gemma3_text", "0-4,6-7")]


@pytest.mark.parametrize(("name", "layers"), KINDS)
def test_every_layer_of_one_kind_may_go(name, layers, tmp_path):
    """Beside its layers a model says which kinds it has (gemma3) or whether any is sliding (smollm3)."""
    source = Checkpoint.open(architectures.make(name, tmp_path / "source"))
    pruned = prune(source, plan(8, layers=layers), tmp_path / "out")
    assert len(set(source.config["layer_types"])) == 2
    assert len(set(pruned.config["layer_types"])) == 1
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

    def snapshot(name, *, revision, allow_patterns, ignore_patterns, local_files_only):
        asked.append((name, revision))
        files = ["README.md", "a-00001-of-2.safetensors", "original/model.safetensors", "consolidated.safetensors"]
        how = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        assert [*filter_repo_objects(files, **how)] == files[:2], "the card, and the weights in the form that is read"
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
    with pytest.raises(CheckpointError, match=r"save_pretrained\(\) writes safetensors"):
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
    assert not (tmp_path / "out").exists()


def test_what_was_copied_for_another_cut_than_the_checked_one_is_written_anew(tmp_path, monkeypatch):
    """Names alone may mislead: here every layer seems to be the one after it."""
    source = Checkpoint.open(make("llama", tmp_path / "source"))
    cut, begun = plan(source.depth, layers="1"), []
    other = kept_tensors(source, plan(source.depth, layers="2"))
    monkeypatch.setattr("shortstack.pruning.pruner._shards_seen", lambda *_: [other])
    begin = CheckpointWriter.begin
    monkeypatch.setattr(
        CheckpointWriter, "begin", lambda self, shards, **rest: (begun.append(shards), begin(self, shards, **rest))
    )
    pruned = prune(source, cut, tmp_path / "out")
    assert begun == [[other], [kept_tensors(source, cut)]]
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
