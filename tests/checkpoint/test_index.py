"""Which files are a checkpoint's weights: what our reader finds is what transformers loads, or the checkpoint is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.source import commit_of
from shortstack.checkpoint.weights import read_weight
from shortstack.errors import CheckpointError
from shortstack.pruning import prune
from zoo import edit_config, make, tiny

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def sharded(folder: Path, *, seed: int = 0) -> Path:
    return make("llama", folder, seed=seed, max_shard_size="60KB")


def single(folder: Path, *, seed: int = 0) -> Path:
    return make("llama", folder, seed=seed)


def put_shards_beside(folder: Path) -> None:
    """An earlier, larger save of other weights was in the folder."""
    other = sharded(folder.with_name("other"), seed=1)
    for path in other.glob("model*"):
        shutil.copy(path, folder)


def map_all_to_the_single_file(folder: Path) -> None:
    names = Checkpoint.open(folder).tensors
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, SINGLE)}))


def put_other_weights_beside(folder: Path) -> None:
    shutil.copy(single(folder.with_name("other"), seed=1) / SINGLE, folder / "consolidated.safetensors")
    torch.save({}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("change", [map_all_to_the_single_file, put_other_weights_beside])
def test_our_reader_and_transformers_read_the_same_weights(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    change(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).state_dict()
    checkpoint = Checkpoint.open(folder)
    loaded = checkpoint.model(dtype=torch.float32).state_dict()
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(read_weight(tensor), theirs[name]), name
        assert torch.equal(loaded[name], theirs[name]), name


def rename_the_file(folder: Path) -> None:
    """transformers does not look for such a name, and would unpickle what lies beside it."""
    (folder / SINGLE).rename(folder / "llama.safetensors")
    torch.save(AutoModelForCausalLM.from_pretrained(tiny("llama")).state_dict(), folder / "pytorch_model.bin")


def pickle_the_weights(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def put_an_adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def name_the_weights(folder: Path) -> None:
    """transformers would read that file in place of the one of the usual name."""
    edit_config(folder, transformers_weights=f"../{SINGLE}")


def store_a_tensor_twice(folder: Path) -> None:
    """In two shards; which of them is meant nothing says."""
    (folder / SINGLE).unlink()
    put_shards_beside(folder)
    first, second = sorted(folder.glob("model-*"))[:2]
    save_file({**load_file(second), **dict([next(iter(load_file(first).items()))])}, second)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (store_a_tensor_twice, "also has"),
        (put_shards_beside, INDEX),
        (pickle_the_weights, "pickled"),
        (rename_the_file, "llama.safetensors"),
        (put_an_adapter_beside, "adapter_config.json"),
        (name_the_weights, "transformers_weights"),
    ],
)
def test_unclear_or_hostile_weights_are_refused(change, named, tmp_path):
    folder = single(tmp_path / "model")
    change(folder)
    with pytest.raises(CheckpointError, match=named):
        Checkpoint.open(folder)


def change_file(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def change_a_weight(folder: Path) -> None:
    content = bytearray((folder / SINGLE).read_bytes())
    content[-1] ^= 1
    (folder / SINGLE).write_bytes(content)


CHANGES = (
    change_a_weight,
    lambda folder: edit_config(folder, rope_theta=5e5),
    change_file("tokenizer.json", '{"version": "1.0", "post_processor": "puts BOS first"}'),
    change_file("generation_config.json", '{"eos_token_id": 7}'),
    change_file("chat_template.jinja", "{{ messages[0] }}"),
    lambda folder: edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own"}),
    change_file("modeling_own.py", "class Own: ..."),
)


def test_identity_has_all_that_a_result_depends_on(tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    seen = [Checkpoint.open(folder, trust_remote_code=True).identity]
    assert Checkpoint.open(folder, trust_remote_code=True).identity == seen[0]
    for change in CHANGES:
        change(folder)
        seen.append(Checkpoint.open(folder, trust_remote_code=True).identity)
        assert seen[-1] not in seen[:-1]
    shutil.copytree(folder, tmp_path / "elsewhere")
    for name in ("README.md", "notes.py", "trainer_state.json"):
        (tmp_path / "elsewhere" / name).write_text("{}")
    assert Checkpoint.open(tmp_path / "elsewhere", trust_remote_code=True).identity == seen[-1]


def test_a_commit_is_that_of_the_hubs_own_cache(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--name" / "snapshots" / commit
    assert commit_of(cached) == commit
    assert commit_of(tmp_path / "snapshots" / commit) is None, "a folder of the user's"
    assert commit_of(tmp_path / "models--org--name" / "snapshots" / "mine") is None


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(Checkpoint.open(tiny("llama")), plan(8, drop=1), tmp_path_factory.mktemp("cut") / "cut").directory


@pytest.mark.parametrize(
    "change",
    [
        {"source": {}},
        {"layer_map": {"0": -1}},
        {"source": {"id": "\ud800"}},
        {"files": {"config.json": {"size": "7", "sha256": "x"}}},
        {"origin": {"verb": "prune", "source": {"id": "m"}, "origin": [1]}},
        {"verb": "heal](https://evil)\n```"},
        {"plan": {"layers": 8, "removed": ["<b>"]}},
        {"layer_map": {"x": 1}},
        {"versions": None},
        {"healing": {"method": "lora"}},
        {"repair": {"kept": True}},
        {"healing": {"config": {"method": "lora", "loss": "sft", "data": "pydoc"}, "samples": 3}},
    ],
    ids=str,
)
def test_a_record_that_somebody_edited_is_refused(change: dict[str, object], cut: Path) -> None:
    """So is one of the verb before, which the card tells of, too; its files are not looked at."""
    record = cut / "shortstack.json"
    written = json.loads(record.read_text())
    before = {"origin": {**written, "files": None, **change}} if "files" not in change else change
    try:
        for told in ({**written, **change}, {**written, **before}):
            record.write_text(json.dumps(told))
            with pytest.raises(CheckpointError, match="is not a record of shortstack"):
                _ = Checkpoint.open(cut).record
    finally:
        record.write_text(json.dumps(written))
    assert Checkpoint.open(cut).record
