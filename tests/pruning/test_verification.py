"""verify(): every damage to a written checkpoint is found, and weights changed on purpose give other logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import CheckpointError
from shortstack.healing import HealingConfig, Partial, heal
from shortstack.pruning import prune, verify
from zoo import edit_config, forge, make, speaking, tiny

SINGLE, RECORD, MATRIX = "model.safetensors", "shortstack.json", "model.layers.3.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def source():
    return Checkpoint.open(tiny("llama"))


@pytest.fixture(scope="module")
def pruned(source, tmp_path_factory):
    return prune(source, "1,4", tmp_path_factory.mktemp("pruned") / "out").directory


@pytest.fixture
def copy(pruned, tmp_path):
    """A written checkpoint, to damage."""
    return Path(shutil.copytree(pruned, tmp_path / "copy"))


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def stream(request):
    """Whether weights are read layer by layer."""
    return request.param


def rounded(weight):
    """The next number up, as another order of summing might give."""
    return torch.nextafter(weight, weight + 1)


def spoiled(weight):
    """One number of the matrix is another."""
    return weight.index_put((torch.tensor(5), torch.tensor(7)), weight[5, 7] + 0.5)


def changed(folder, name, change):
    """The checkpoint with another value of one weight, and a manifest that fits it."""
    tensors = load_file(folder / SINGLE)
    save_file({**tensors, name: change(tensors[name])}, folder / SINGLE, {"format": "pt"})
    forge(folder)
    return Checkpoint.open(folder)


def failed(folder, base=None, **how):
    """The one check that fails, and its detail; a file that cannot even be opened is an error."""
    try:
        result = verify(folder, base=base, **how)
    except CheckpointError as error:
        return "files", str(error)
    assert not result.ok
    ((name, check),) = [(name, check) for name, check in result.checks.items() if not check["ok"]]
    return name, check["detail"]


def test_logits_of_a_pruned_model_equal_those_without_the_layers(source, pruned, stream):
    result = verify(pruned, base=source, stream=stream)
    assert list(result.checks) == ["files", "tensors", "logits"]
    assert result.to_dict()["ok"] is True
    assert "max abs difference 0 without layers 1, 4" in result.checks["logits"]["detail"]


def test_models_larger_than_memory_are_streamed(pruned, source, monkeypatch):
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    monkeypatch.setattr(Checkpoint, "model", lambda *_a, **_k: pytest.fail("it was loaded whole"))
    assert verify(pruned, base=source).ok


def append(path):
    path.write_bytes(path.read_bytes() + b"\n")


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "damage"), [(SINGLE, shorten), ("config.json", append), ("generation_config.json", Path.unlink)]
)
def test_damaged_files_are_found(name, damage, copy):
    damage(copy / name)
    check, detail = failed(copy)
    assert check == "files"
    assert name in detail


def test_added_weights_and_code_are_found(copy):
    names = ("evil.py", "extra.safetensors", "model.gguf", "pytorch_model.bin")
    for name in names:
        (copy / name).write_bytes((copy / SINGLE).read_bytes())
    check, detail = failed(copy)
    assert check == "files"
    assert all(name in detail for name in names)


def test_a_changed_weight_with_a_forged_manifest_gives_other_logits(copy, source, stream):
    assert verify(changed(copy, MATRIX, spoiled), base=None).ok, "nothing but the base model can tell"
    check, detail = failed(copy, source, stream=stream)
    assert check == "logits"
    assert "max abs difference 0 " not in detail


@pytest.mark.parametrize("change", [{"num_hidden_layers": 5}, {"vocab_size": 97}, {"model_type": "bert"}])
def test_a_config_that_does_not_fit_with_a_forged_manifest_is_found(change, copy, source, stream):
    edit_config(copy, **change)
    forge(copy)
    assert failed(copy, source, stream=stream)[0] == "tensors"


def test_models_that_do_not_belong_together_are_refused(pruned, copy, source, tmp_path):
    record = json.loads((copy / RECORD).read_text())
    (copy / RECORD).write_text(json.dumps(record | {"layer_map": {str(layer): layer + 9 for layer in range(6)}}))
    other = make("llama", tmp_path / "other", vocab_size=100)
    for checkpoint, base in ((pruned, pruned), (pruned, other), (source, None), (copy, source)):
        with pytest.raises(CheckpointError):
            verify(checkpoint, base=base)


def test_rounding_is_allowed_where_a_cut_narrows_a_matrix(tmp_path):
    """Matrices outside the layers have a part for each layer."""
    source = Checkpoint.open(architectures.make("gemma3n_text, no shared keys", tmp_path / "source"))
    cut = plan(8, layers="1,4,6").sized(source.sizes)
    pruned = prune(source, cut, tmp_path / "out")
    assert sum(source.sizes.layer_parameters) + source.sizes.other_parameters == source.parameters
    assert pruned.parameters == cut.parameters.after
    result = verify(changed(pruned.directory, "model.norm.weight", rounded), base=source)
    assert result.ok, result
    assert "max abs difference 0 " not in result.checks["logits"]["detail"]
    changed(pruned.directory, MATRIX, spoiled)
    assert failed(pruned.directory, source)[0] == "logits"


@pytest.mark.usefixtures("own_cache")
def test_a_cut_of_a_healed_model_equals_that_and_not_the_base_model(tmp_path):
    base = Checkpoint.open(speaking(tmp_path / "base"))
    first = prune(base, "2", tmp_path / "first")
    untrained = prune(first, "3", tmp_path / "untrained")
    assert "max abs difference 0 without layers 2, 4" in verify(untrained, base=base).checks["logits"]["detail"]
    config = HealingConfig(
        data="pydoc", max_length=32, max_samples=16, method=Partial(train_last=1), max_steps=2, learning_rate=1e-2
    )
    heal(first, tmp_path / "trained", config)
    second = prune(tmp_path / "trained", "3", tmp_path / "second")
    for other in (base, first):
        result = verify(second, base=other)
        assert result.ok, "it differs on purpose"
        assert "max abs difference 0 " not in result.checks["logits"]["detail"]
    assert (
        "max abs difference 0 without layer 3" in verify(second, base=tmp_path / "trained").checks["logits"]["detail"]
    )
    changed(second.directory, "model.layers.0.mlp.up_proj.weight", spoiled)
    assert failed(second.directory, tmp_path / "trained")[0] == "logits"
