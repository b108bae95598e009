"""prune(): cuts it refuses without a trace, what it copies before the cut is checked; any cut is exact, two cuts are one."""

import functools
import tempfile
from pathlib import Path

import architectures
import pytest
import torch
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


def more_layers_than_the_config(folder):
    edit_config(make("llama", folder), num_hidden_layers=5)


def no_attention_left(folder):
    architectures.make("bamba", folder)


def described_in_the_header(folder):
    """As torchao does: the descriptions would be lost, or be of other layers."""
    described = {"format": "pt", "model.layers.0.mlp.up_proj.weight": '{"_type": "Int8Tensor"}'}
    save_file(load_file(make("llama", folder) / SINGLE), folder / SINGLE, metadata=described)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (more_layers_than_the_config, CheckpointError),
        (no_attention_left, ArchitectureError),
        (described_in_the_header, CheckpointError),
    ],
)
def test_a_refused_cut_leaves_nothing(source, error, tmp_path):
    source(tmp_path / "source")
    with pytest.raises(error):
        prune(tmp_path / "source", "2,5" if source is no_attention_left else "1", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_cut_refused_while_it_is_copied_leaves_nothing(tmp_path, monkeypatch):
    source, found = Checkpoint.open(make("llama", tmp_path / "source")), []

    def refused(*_any: object) -> None:
        found.append(sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()))
        raise ArchitectureError("not it")

    monkeypatch.setattr("shortstack.pruning.pruner.pruned_config", refused)
    with pytest.raises(ArchitectureError):
        prune(source, "1", tmp_path / "out")
    assert "out.partial" in found[0], "it was being written"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_declared_extra_heads_are_removed(tmp_path):
    directory = make("llama", tmp_path / "source")
    edit_config(directory, num_hidden_layers=7, num_nextn_predict_layers=1)
    pruned = prune(directory, "2", tmp_path / "out")
    assert pruned.config["num_nextn_predict_layers"] == 0
    assert {pruned.layer_names.layer_of(name) for name in pruned.tensors} == {None, 0, 1, 2, 3, 4, 5}


def test_extra_heads_named_mtp_are_removed_and_counted_by_the_plan(tmp_path):
    directory = make("llama", tmp_path / "source")
    names = ("mtp.fc", "model.mtp_layers.0.mlp.up_proj", "mtp_dspark.1.norm")
    heads = {f"{name}.weight": torch.randn(4, 5) for name in names}
    save_file({**load_file(directory / SINGLE), **heads}, directory / SINGLE, {"format": "pt"})
    source = Checkpoint.open(directory)
    cut = plan(8, layers="2").sized(source.sizes)
    pruned = prune(source, cut, tmp_path / "out")
    assert not any("mtp" in name for name in pruned.tensors)
    assert (cut.parameters.before, cut.parameters.after) == (source.parameters, pruned.parameters)
    assert (cut.bytes.before, cut.bytes.after) == (source.weight_bytes, pruned.weight_bytes)
    assert verify(pruned, base=source).ok


@pytest.mark.parametrize(("name", "layers"), [("smollm3", "0,2-4,6-7"), ("gemma3_text", "0-4,6-7")])
def test_every_layer_of_one_kind_may_be_removed(name, layers, tmp_path):
    """Beside its layers a model says which kinds it has (gemma3) or whether any is sliding (smollm3)."""
    source = Checkpoint.open(architectures.make(name, tmp_path / "source"))
    pruned = prune(source, layers, tmp_path / "out")
    assert len({*source.config["layer_types"]}) == 2
    assert len({*pruned.config["layer_types"]}) == 1
    assert verify(pruned, base=source).ok


def test_further_chat_templates_are_copied_and_verified(tmp_path):
    directory = make("llama", tmp_path / "source")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    pruned = prune(directory, "2", tmp_path / "out")
    copied = tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja"
    assert copied.read_text() == "{{ tools }}"
    assert verify(pruned).ok
    copied.write_text("{{ other }}")
    assert not verify(tmp_path / "out").ok


def test_tensors_copied_for_another_cut_than_the_checked_one_are_written_anew(tmp_path, monkeypatch):
    """Names alone may mislead: here every layer seems to be the one after it."""
    source, begun = Checkpoint.open(make("llama", tmp_path / "source")), []
    other, begin = kept_tensors(source, plan(8, layers="2")), CheckpointWriter.begin
    monkeypatch.setattr("shortstack.pruning.pruner._shards_seen", lambda *_: [other])
    monkeypatch.setattr(
        CheckpointWriter, "begin", lambda self, shards, **rest: (begun.append(shards), begin(self, shards, **rest))
    )
    pruned = prune(source, "1", tmp_path / "out")
    assert begun == [[other], [kept_tensors(source, plan(8, layers="1"))]]
    assert verify(pruned, base=source).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


NAMES = ("gemma3_text", "deepseek_v3, two layers dense", "qwen2_moe, every second layer sparse")
few = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
keeps = st.sets(st.integers(0, 7), min_size=2, max_size=7).map(sorted)


@functools.cache
def source(name: str) -> Checkpoint:
    folder = tempfile.TemporaryDirectory()
    checkpoint = Checkpoint.open(architectures.make(name, Path(folder.name) / "source"))
    vars(checkpoint)["folder"] = folder  # lives as long as the checkpoint does
    return checkpoint


@pytest.mark.parametrize("name", NAMES)
@few
@given(kept=keeps, data=st.data())
def test_any_cut_is_exact_and_two_cuts_are_one(name, kept, data):
    first = data.draw(st.sets(st.integers(0, 7)).map(lambda extra: sorted({*kept, *extra})))
    with tempfile.TemporaryDirectory() as folder:

        def without(checkpoint: Checkpoint, removed: list[int], out: str) -> Checkpoint:
            return prune(checkpoint, removed, Path(folder) / out) if removed else checkpoint

        once = without(source(name), [layer for layer in range(8) if layer not in kept], "once")
        assert verify(once, base=source(name)).ok
        half = without(source(name), [layer for layer in range(8) if layer not in first], "half")
        twice = without(half, [number for number, layer in enumerate(first) if layer not in kept], "twice")
        assert once.weights_sha256 == twice.weights_sha256
        assert once.config == twice.config
        assert (once.record.get("layer_map") or {}) == (twice.record.get("layer_map") or {})
