"""Which files are a checkpoint's weights: what our reader finds is what transformers loads, or the checkpoint is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.source import commit_of
from shortstack.checkpoint.weights import read_weight
from shortstack.errors import CheckpointError
from shortstack.pruning import prune
from zoo import make, tiny

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


def set_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def name_another_file(folder: Path) -> None:
    """config.json names weights that differ from those of the usual name."""
    shutil.copy(single(folder.with_name("other"), seed=1) / SINGLE, folder / "consolidated.safetensors")
    set_config(folder, transformers_weights="consolidated.safetensors")


def name_another_index(folder: Path) -> None:
    other = sharded(folder.with_name("other"), seed=1)
    for path in other.glob("model-*"):
        shutil.copy(path, folder)
    shutil.copy(other / INDEX, folder / "others.safetensors.index.json")
    set_config(folder, transformers_weights="others.safetensors.index.json")


def put_other_weights_beside(folder: Path) -> None:
    shutil.copy(single(folder.with_name("other"), seed=1) / SINGLE, folder / "consolidated.safetensors")
    torch.save({}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "change", [map_all_to_the_single_file, name_another_file, name_another_index, put_other_weights_beside]
)
def test_our_reader_and_transformers_read_the_same_weights(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    change(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).state_dict()
    checkpoint = Checkpoint.open(folder)
    loaded = checkpoint.model(dtype=torch.float32).state_dict()
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(read_weight(tensor), theirs[name]), name
        assert torch.equal(loaded[name], theirs[name]), name


def test_what_is_written_of_a_named_file_has_the_usual_name(tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    name_another_file(folder)
    checkpoint = Checkpoint.open(folder)
    prune(checkpoint, plan(checkpoint.anatomy.layers, drop=1), tmp_path / "cut")
    assert "transformers_weights" not in json.loads((tmp_path / "cut" / "config.json").read_text())
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(cut[name], read_weight(checkpoint.tensors[name]))


def rename_the_file(folder: Path) -> None:
    """transformers does not look for such a name, and would unpickle what lies beside it."""
    (folder / SINGLE).rename(folder / "llama.safetensors")
    torch.save(AutoModelForCausalLM.from_pretrained(tiny("llama")).state_dict(), folder / "pytorch_model.bin")


def put_an_adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def name_a_file_outside(folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder.parent)
    set_config(folder, transformers_weights=f"../{SINGLE}")


def name_a_pickle(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    set_config(folder, transformers_weights="pytorch_model.bin")


def name_a_number(folder: Path) -> None:
    set_config(folder, transformers_weights=7)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (put_shards_beside, "left from an earlier save"),
        (rename_the_file, r"llama.safetensors alone.*name it model.safetensors"),
        (put_an_adapter_beside, "an adapter beside them"),
        (name_a_file_outside, r"in its folder, found '../model.safetensors'"),
        (name_a_pickle, "found 'pytorch_model.bin'"),
        (name_a_number, "found 7"),
    ],
)
def test_what_is_unclear_or_hostile_is_refused_by_name(
    change: Callable[[Path], None], found: str, tmp_path: Path
) -> None:
    folder = single(tmp_path / "model")
    change(folder)
    with pytest.raises(CheckpointError, match=found):
        Checkpoint.open(folder)


def test_what_a_training_left_is_not_copied(tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    for name in ("trainer_state.json", "params.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    checkpoint = Checkpoint.open(folder)
    prune(checkpoint, plan(checkpoint.anatomy.layers, drop=1), tmp_path / "cut")
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        SINGLE,
        "shortstack.json",
        "tokenizer_config.json",
    ]


def change_file(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def change_a_weight(folder: Path) -> None:
    content = bytearray((folder / SINGLE).read_bytes())
    content[-1] ^= 1
    (folder / SINGLE).write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        change_a_weight,
        lambda folder: set_config(folder, rope_theta=5e5),
        change_file("tokenizer.json", '{"version": "1.0", "post_processor": "puts BOS first"}'),
        change_file("tokenizer_config.json", '{"add_bos_token": true}'),
        change_file("generation_config.json", '{"eos_token_id": 7}'),
        change_file("chat_template.jinja", "{{ messages[0] }}"),
        change_file("modeling_own.py", "def forward(): ..."),
    ],
)
def test_whatever_a_result_depends_on_is_in_the_identity(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "modeling_own.py"):
        (folder / name).write_text("{}")
    before = Checkpoint.open(folder, trust_remote_code=True).identity
    assert Checkpoint.open(folder, trust_remote_code=True).identity == before
    change(folder)
    assert Checkpoint.open(folder, trust_remote_code=True).identity != before


def test_what_no_result_depends_on_is_not_in_the_identity(tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    before = Checkpoint.open(folder).identity
    for name in ("README.md", "modeling_own.py", "trainer_state.json"):  # code counts where it is trusted
        (folder / name).write_text("{}")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert Checkpoint.open(tmp_path / "elsewhere").identity == before


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
        {"source": "m"},
        {"layer_map": {"0": "one"}},
        {"layer_map": {"0": -1}},
        {"layer_map": ""},
        {"source": {"id": "\ud800"}},
        {"plan": {"removed": [1]}},
        {"plan": [1]},
        {"repair": "kept"},
        {"files": {"config.json": {"size": "7", "sha256": "x"}}},
        {"files": {"config.json": {"size": 7}}},
        {"origin": {"verb": 7}},
        {"origin": {"verb": "prune", "source": {"id": "m"}, "origin": [1]}},
        {"verb": "heal](https://evil)\n```"},
        {"plan": {"layers": 8}},
        {"plan": {"layers": 8, "removed": ["<b>"]}},
        {"layer_map": {"x": 1}},
        {"versions": None},
        {"healing": {"method": "lora"}},
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
            with pytest.raises(CheckpointError, match="the record shortstack writes"):
                _ = Checkpoint.open(cut).record
    finally:
        record.write_text(json.dumps(written))
    assert Checkpoint.open(cut).record
