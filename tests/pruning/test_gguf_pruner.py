"""prune of GGUF files: llama.cpp itself computes what it should of them; what cannot be exact is refused."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from gguf_models import MAKERS, fields, probabilities
from plans import plan
from shortstack.checkpoint.gguf_file import INT32, UINT32, Entry, read_gguf, write_gguf
from shortstack.errors import ArchitectureError, CheckpointError, InputError, OutputError, PlanError
from shortstack.planning import Plan
from shortstack.planning.layer_sets import parse_layers
from shortstack.pruning.gguf_depth import GgufDepth
from shortstack.pruning.gguf_pruner import prune_gguf
from shortstack.pruning.gguf_verification import verify_gguf

Q4_1 = gguf.GGMLQuantizationType.Q4_1
# Scattered cuts, of periods where there are any.
CUTS = {
    **{name: ["1,3,6"] for name in ("llama", "lfm2", "openelm", "qwen2", "qwen3", "qwen3moe", "phi3")},
    "smollm3": ["4-7", "0-1,3,5"],
    "deepseek": ["0,2,5"],
    "gemma2": ["1-2,5-6"],
    "gemma3": ["0,2,5-7,10"],
}


@pytest.mark.parametrize(
    ("name", "removed", "kind"),
    [*((name, cut, None) for name, cuts in CUTS.items() for cut in cuts), ("llama", "1,3,6", Q4_1)],
)
def test_llama_cpp_computes_the_same_as_with_layers_that_add_nothing(name, removed, kind, tmp_path):
    pytest.importorskip("xllamacpp")
    silent = parse_layers(removed)
    whole = MAKERS[name](tmp_path / "whole.gguf", silent=silent, kind=kind)
    layers = GgufDepth.of(read_gguf(whole)).layers
    prune_gguf(whole, Plan(layers, silent, "layers"), tmp_path / "small.gguf")
    assert {tensor.kind for tensor in read_gguf(tmp_path / "small.gguf").tensors} == {0, kind or 0}
    expected, found = probabilities(whole), probabilities(tmp_path / "small.gguf")
    assert len(found) == len(expected) == 3
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_kept_layers_are_the_same_bytes_under_new_numbers(name, tmp_path):
    whole = MAKERS[name](tmp_path / "whole.gguf")
    removed = CUTS[name][-1]
    layers = GgufDepth.of(read_gguf(whole)).layers
    cut = plan(layers, layers=removed)
    prune_gguf(whole, cut.removed, tmp_path / "small.gguf")
    before, after = (
        {each.name: each for each in gguf.GGUFReader(path).tensors} for path in (whole, tmp_path / "small.gguf")
    )
    for place, layer in enumerate(cut.kept):
        for tensor in before.values():
            if tensor.name.startswith(f"blk.{layer}."):
                other = after.pop(tensor.name.replace(f"blk.{layer}.", f"blk.{place}.", 1))
                assert (other.data.tobytes(), other.tensor_type) == (tensor.data.tobytes(), tensor.tensor_type)
    assert {*after} == {tensor for tensor in before if not tensor.startswith("blk.")}
    assert all(after[each].data.tobytes() == before[each].data.tobytes() for each in after)
    assert verify_gguf(tmp_path / "small.gguf", base=whole).ok
    said = fields(tmp_path / "small.gguf")
    assert said[f"{name}.block_count"] == len(cut.kept)
    assert (said["shortstack.kept_layers"], said["shortstack.source"]) == (list(cut.kept), "whole.gguf")


def test_values_by_layer_follow_their_layers_and_others_stay(tmp_path):
    whole = MAKERS["openelm"](tmp_path / "whole.gguf", **{"rope.dimension_sections": [1, 2, 3, 4, 5, 6, 7, 8]})
    prune_gguf(whole, plan(8, layers="1,3,6"), tmp_path / "small.gguf")
    before, after = fields(whole), fields(tmp_path / "small.gguf")
    by_layer = {
        f"openelm.{name}" for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    }
    assert {name for name in before if before[name] != after.get(name)} == {*by_layer, "openelm.block_count"}
    for name in by_layer:
        assert after[name] == [before[name][layer] for layer in (0, 2, 4, 5, 7)]


def test_dense_layers_are_counted_again_and_prediction_heads_go(tmp_path):
    whole = MAKERS["deepseek"](tmp_path / "whole.gguf", nextn_predict_layers=1)
    assert GgufDepth.of(read_gguf(whole)).layers == 7
    prune_gguf(whole, plan(7, layers="0,2,5"), tmp_path / "small.gguf")
    said = fields(tmp_path / "small.gguf")
    assert [said[f"deepseek.{name}"] for name in ("leading_dense_block_count", "nextn_predict_layers")] == [1, 0]
    assert {tensor.block for tensor in read_gguf(tmp_path / "small.gguf").tensors} == {None, 0, 1, 2, 3}


def test_an_interval_becomes_another_where_that_is_exact(tmp_path):
    entries = {
        "general.architecture": Entry.text("qwen3next"),
        "qwen3next.block_count": Entry.number(12, UINT32),
        "qwen3next.full_attention_interval": Entry.number(4, UINT32),
    }
    depth = GgufDepth("qwen3next", entries, tmp_path / "a.gguf")
    one_of_three_less = depth.without([layer for layer in range(12) if layer % 4 != 1])
    assert one_of_three_less["qwen3next.full_attention_interval"].value == 3
    assert one_of_three_less["qwen3next.block_count"].value == 9
    assert depth.without(range(8))["qwen3next.full_attention_interval"].value == 4
    with pytest.raises(ArchitectureError, match="6-8,10"):
        depth.without([0, 1, 2, 3, 4, 5, 9, 10])  # 6-8 and 11 go


@pytest.mark.parametrize(
    ("architecture", "layers", "left", "vocabulary", "exact"),
    [
        ("deepseek2", 27, 26, 102400, True),  # both are taken for lite ones
        ("deepseek2", 27, 25, 102400, False),
        ("deepseek2", 48, 40, 128256, False),
        ("deepseek2", 48, 40, 129280, True),
        ("minicpm3", 62, 48, 73448, False),  # residual branches are scaled by their number
        ("baichuan", 32, 28, 64000, False),  # by 32 and 40 llama.cpp knows which positions it has
        ("command-r", 64, 60, 256000, False),  # the larger model alone has norms of queries and keys
        ("command-r", 40, 32, 256000, True),
    ],
)
def test_cuts_where_the_number_of_layers_changes_all_of_them(architecture, layers, left, vocabulary, exact):
    known = {"block_count": layers, "vocab_size": vocabulary}
    entries = {f"{architecture}.{name}": Entry.number(value, UINT32) for name, value in known.items()}
    cut = plan(layers, layers=f"{left}-{layers - 1}")
    assert GgufDepth(architecture, entries, Path("a.gguf")).is_exact(cut) is exact


@pytest.mark.parametrize(("window", "exact"), [(0, True), (4096, False)])
@pytest.mark.parametrize("architecture", ["olmo2", "gemma3"])
def test_sliding_layers_are_told_apart(architecture, window, exact):
    known = {"block_count": 32, "attention.sliding_window": window}
    entries = {f"{architecture}.{name}": Entry.number(value, UINT32) for name, value in known.items()}
    assert GgufDepth(architecture, entries, Path("a.gguf")).is_exact(plan(32, layers="5")) is exact


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("nonesuch", {}),
        ("llama", {"attention.shared_kv_layers": 3}),
        ("llama", {"of_each_layer": [1] * 8}),
        ("gemma2", {}),  # layers 3 and 6 are of two kinds
    ],
)
def test_unknown_and_inexact_cuts_are_refused(architecture, more, tmp_path):
    whole = MAKERS["llama"](tmp_path / "whole.gguf", architecture=architecture, **more)
    with pytest.raises(ArchitectureError):
        prune_gguf(whole, "3,6", tmp_path / "small.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


def test_files_that_lack_layers_and_outputs_that_cannot_be_are_refused(tmp_path):
    whole = MAKERS["llama"](tmp_path / "whole.gguf")
    model = read_gguf(whole)
    lacking = [tensor for tensor in model.tensors if tensor.block != 5]
    write_gguf(tmp_path / "lacking.gguf", model.entries, lacking, like=model)
    lie = replace(model, entries={**model.entries, "llama.block_count": Entry.number(2**32 - 1)})
    with pytest.raises(CheckpointError):
        GgufDepth.of(lie)
    (tmp_path / "there.gguf").touch()
    for error, source, cut, out in (
        (CheckpointError, "lacking.gguf", "3", "small.gguf"),
        (PlanError, "whole.gguf", plan(9, layers="3"), "small.gguf"),
        (InputError, "whole.gguf", "3", "small-00001-of-00002.gguf"),
        (OutputError, "whole.gguf", "3", "there.gguf"),
        (OutputError, "whole.gguf", "3", "whole.gguf"),
    ):
        with pytest.raises(error):
            prune_gguf(tmp_path / source, cut, tmp_path / out)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.gguf", "lacking.gguf", "there.gguf"}


def test_a_model_in_parts_is_cut_as_one(tmp_path):
    whole = MAKERS["llama"](tmp_path / "whole.gguf")
    model = read_gguf(whole)
    for number, tensors in enumerate((model.tensors[:30], model.tensors[30:]), start=1):
        split = {"split.count": Entry.number(2, UINT32), "split.no": Entry.number(number - 1, UINT32)}
        entries = {**model.entries, **split} if number == 1 else split
        write_gguf(tmp_path / f"part-{number:05d}-of-00002.gguf", entries, tensors, like=model)
    prune_gguf(whole, plan(8, layers="2-3"), tmp_path / "small.gguf")
    small = prune_gguf(tmp_path / "part-00002-of-00002.gguf", plan(8, layers="2-3"), tmp_path / "of_parts.gguf")
    assert not [name for name in fields(small) if name.startswith("split.")]
    assert verify_gguf(small, base=whole).ok
    assert verify_gguf(tmp_path / "small.gguf", base=tmp_path / "part-00001-of-00002.gguf").ok


def test_changed_bytes_metadata_and_tensors_are_found(tmp_path):
    whole = MAKERS["llama"](tmp_path / "whole.gguf")
    prune_gguf(whole, "2-3", tmp_path / "small.gguf")
    model = read_gguf(tmp_path / "small.gguf")
    changed = {**model.entries, "llama.rope.freq_base": Entry.number(7, INT32)}
    write_gguf(tmp_path / "other.gguf", changed, model.tensors, like=model)
    write_gguf(tmp_path / "fewer.gguf", model.entries, model.tensors[:-1], like=model)
    content = bytearray((tmp_path / "small.gguf").read_bytes())
    content[-100] ^= 1
    (tmp_path / "small.gguf").write_bytes(content)
    for name, check in (("small", "bytes"), ("other", "metadata"), ("fewer", "bytes")):
        found = verify_gguf(tmp_path / f"{name}.gguf", base=whole)
        assert [each for each in found.checks if not found.checks[each]["ok"]] == [check]


def test_tensors_of_unknown_types_are_copied(tmp_path):
    whole = MAKERS["llama"](tmp_path / "whole.gguf")
    content = whole.read_bytes()
    name = b"blk.5.ffn_up.weight"
    place = content.index(name) + len(name) + 4 + 16  # behind its dimensions
    assert content[place : place + 4] == bytes(4)
    whole.write_bytes(content[:place] + (999).to_bytes(4, "little") + content[place + 4 :])
    prune_gguf(whole, plan(8, layers="2-3"), tmp_path / "small.gguf")
    kinds = {tensor.name: tensor.kind for tensor in read_gguf(tmp_path / "small.gguf").tensors}
    assert kinds["blk.3.ffn_up.weight"] == 999
    assert verify_gguf(tmp_path / "small.gguf", base=whole).ok


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_nothing(failure, tmp_path):
    whole = MAKERS["llama"](tmp_path / "whole.gguf")

    def stop(_stage, done, total, /, *, note=""):
        if done > total // 2:
            raise failure

    with pytest.raises(type(failure)):
        prune_gguf(whole, "2-3", tmp_path / "small.gguf", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]
