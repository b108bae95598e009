"""verify: every damage to a written checkpoint is found, and weights that were changed on purpose give other logits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
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

SINGLE, RECORD = "model.safetensors", "shortstack.json"


@pytest.fixture(scope="module")
def source():
    return Checkpoint.open(tiny("llama"))


@pytest.fixture(scope="module")
def pruned(source, tmp_path_factory):
    return prune(source, plan(8, layers="1,4"), tmp_path_factory.mktemp("pruned") / "out").directory


@pytest.fixture
def copy(pruned, tmp_path):
    """A written checkpoint, to damage."""
    return Path(shutil.copytree(pruned, tmp_path / "copy"))


@pytest.fixture(scope="module")
def narrowed(tmp_path_factory):
    """A source whose matrices outside the layers have a part for each layer, and a cut of it."""
    folder = tmp_path_factory.mktemp("narrowed")
    source = Checkpoint.open(architectures.make("gemma3n_text, no shared keys", folder / "source"))
    cut = plan(8, layers="1,4,6")
    pruned = prune(source, cut, folder / "out")
    assert sum(source.sizes.layer_parameters) + source.sizes.other_parameters == source.parameters
    assert pruned.parameters == cut.sized(source.sizes).parameters.after
    return source, pruned.directory


def changed(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Checkpoint:
    """The checkpoint with another value of one weight, and a manifest that fits it."""
    tensors = load_file(folder / SINGLE)
    save_file({**tensors, name: change(tensors[name])}, folder / SINGLE, {"format": "pt"})
    forge(folder)
    return Checkpoint.open(folder)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """The next number up, as another order of summing might give."""
    return torch.nextafter(weight, weight + 1)


def spoiled(weight: torch.Tensor) -> torch.Tensor:
    """One number of the matrix is another."""
    return weight.index_put((torch.tensor(5), torch.tensor(7)), weight[5, 7] + 0.5)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def stream(request):
    """Whether weights are read layer by layer."""
    return request.param


def failed(folder: Path, source: Checkpoint | None = None, **how: bool) -> tuple[str, str]:
    """The one check that fails, and what it says; a file that cannot even be opened is an error."""
    try:
        result = verify(Checkpoint.open(folder), against=source, **how)
    except CheckpointError as error:
        return "open", str(error)
    wrong = [(name, check["detail"]) for name, check in result.checks.items() if not check["ok"]]
    assert not result.ok
    assert len(wrong) == 1
    return wrong[0]


def test_what_was_written_is_verified(source, pruned, stream):
    result = verify(Checkpoint.open(pruned), against=source, stream=stream)
    assert result.ok
    assert list(result.checks) == ["files", "tensors", "logits"]
    assert result.to_dict()["ok"] is True
    assert "max abs difference 0 without layers 1, 4" in result.checks["logits"]["detail"]


def test_models_that_do_not_fit_in_memory_are_streamed(pruned, source, monkeypatch):
    def whole(*_args, **_options):
        pytest.fail("it was loaded whole")

    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    monkeypatch.setattr(Checkpoint, "model", whole)
    assert verify(Checkpoint.open(pruned), against=source).ok


@pytest.mark.parametrize(
    ("name", "how"), [(SINGLE, "shorter"), ("config.json", "longer"), ("generation_config.json", "deleted")]
)
def test_a_file_that_is_gone_or_of_another_size_is_found(name, how, copy):
    path = copy / name
    content = path.read_bytes()
    path.unlink()
    if how != "deleted":
        path.write_bytes(content + b"\n" if how == "longer" else content[:-1])
    check, said = failed(copy)
    assert check in {"files", "open"}
    if check == "files":
        assert name in said
        assert ("is missing" if how == "deleted" else f"bytes, not {len(content)}") in said


def test_a_changed_weight_with_a_forged_manifest_gives_other_logits(copy, source, stream):
    tensors = load_file(copy / SINGLE)
    tensors["model.layers.3.mlp.up_proj.weight"][5, 7] += 0.5
    save_file(tensors, copy / SINGLE, {"format": "pt"})
    assert failed(copy)[0] == "files"
    forge(copy)
    assert verify(Checkpoint.open(copy)).ok  # nothing but the source can tell
    check, said = failed(copy, source, stream=stream)
    assert check == "logits"
    assert "max abs difference 0 " not in said


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"num_hidden_layers": 5}, "unexpected_keys|9 without a place in the model"),
        ({"vocab_size": 97}, "2 mismatched_keys|2 of another shape"),
        ({"model_type": "bert"}, "an encoder"),
    ],
)
def test_a_config_that_does_not_fit_with_a_forged_manifest_is_found(change, found, copy, source, stream):
    edit_config(copy, **change)
    forge(copy)
    check, said = failed(copy, source, stream=stream)
    assert check == "tensors"
    assert re.search(found, said)


def test_models_that_do_not_belong_together_are_refused(pruned, copy, source, tmp_path):
    checkpoint = Checkpoint.open(pruned)
    with pytest.raises(CheckpointError, match="same layers"):
        verify(checkpoint, against=checkpoint)
    other = Checkpoint.open(make("llama", tmp_path / "other", vocab_size=100))
    with pytest.raises(CheckpointError, match=r"vocabulary of .*, 100 tokens"):
        verify(checkpoint, against=other)
    with pytest.raises(CheckpointError, match="record"):
        verify(source)
    record = json.loads((copy / RECORD).read_text())
    (copy / RECORD).write_text(json.dumps(record | {"layer_map": {str(layer): layer + 9 for layer in range(6)}}))
    with pytest.raises(CheckpointError, match="a cut of"):
        verify(Checkpoint.open(copy), against=source)


def test_weights_or_code_that_were_added_are_found(copy):
    names = ("evil.py", "extra.safetensors", "model.gguf", "pytorch_model.bin")
    for name in names:
        (copy / name).write_bytes((copy / SINGLE).read_bytes())
    check, said = failed(copy)
    assert check == "files"
    assert said == "; ".join(f"{name} was not written by shortstack" for name in names)


def test_where_a_cut_makes_a_matrix_smaller_rounding_is_no_difference(narrowed, tmp_path):
    source, out = narrowed
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    result = verify(changed(copy, "model.norm.weight", rounded), against=source)
    said = result.checks["logits"]["detail"]
    assert result.ok, said
    assert "max abs difference 0 " not in said
    assert "is rounding, since model.embed_tokens_per_layer.weight is smaller" in said
    changed(copy, "model.layers.3.mlp.up_proj.weight", spoiled)
    assert failed(copy, source)[0] == "logits"


@pytest.mark.usefixtures("own_cache")
def test_a_cut_of_a_healed_cut_differs_from_the_original_and_equals_what_was_healed(tmp_path):
    original = Checkpoint.open(speaking(tmp_path / "original"))
    first = prune(original, plan(8, layers="2"), tmp_path / "first")
    untrained = prune(first, plan(7, layers="3"), tmp_path / "untrained")
    assert "max abs difference 0 without layers 2, 4" in verify(untrained, against=original).checks["logits"]["detail"]
    how = {"max_length": 32, "max_samples": 16, "max_steps": 2, "learning_rate": 1e-2}
    heal(first, tmp_path / "trained", HealingConfig("pydoc", method=Partial(train_last=1), **how))
    trained = Checkpoint.open(tmp_path / "trained")
    second = prune(trained, plan(7, layers="3"), tmp_path / "second")
    for source in (original, first):
        result = verify(second, against=source)
        assert result.ok
        assert (
            "it was repaired or trained since, so that only NaN or infinity fails" in result.checks["logits"]["detail"]
        )
        assert "max abs difference 0 " not in result.checks["logits"]["detail"]
    result = verify(second, against=trained)
    assert result.ok
    assert "max abs difference 0 without layer 3" in result.checks["logits"]["detail"]
    changed(second.directory, "model.layers.0.mlp.up_proj.weight", spoiled)
    assert failed(second.directory, trained)[0] == "logits"
