"""Writing: atomic or absent, byte for byte what was kept, and the same whatever way the same layers went."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from plans import plan
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.checkpoint import weights as fitting
from shortstack.checkpoint.card import CARD
from shortstack.checkpoint.file_names import BESIDE
from shortstack.checkpoint.record import provenance
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.errors import CheckpointError, OutputError
from shortstack.pruning import prune
from zoo import make, speaking, tiny

SINGLE, INDEX, RECORD = "model.safetensors", "model.safetensors.index.json", "shortstack.json"
SIDE = {
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"\x00\xff",
    "chat_template.jinja": b"{{ messages }}\r\n",
    "generation_config.json": b'{ "do_sample":true }',
    "LICENSE": b"terms",
    "NOTICE.md": b"thanks",
    "merges.txt": b"a b\n",
    "vocab.json": b'{ "a":0}',
    "bpe.codes": b"a b 1\r\n",
    "spiece.model": b"\n\x00",
    "target.spm": b"a\t-1\n",
    "tekken.json": b"{}",
    "special_tokens_map.json": b"{}",
    "word_shape.json": b"{}",
    "quantize_config.json": b"{}\n",
}
LEFT = {
    "README.md": b"about",
    ".hidden": b"x",
    "run.py": b"raise SystemExit",
    "training_args.bin": b"x",
    "trainer_state.json": b"{}",
    "notes.txt": b"mine",
    "credentials.json": b"{}",
    "token.txt": b"hf_x",
    "tokenizer.pkl": b"x",
    "tokenizer.PY": b"raise SystemExit",
    "vocab.pt": b"x",
    "training_config.json": b'{"hub_token": "hf_x"}',
    "my_tokenizer_notes.txt": b"mine",
    "private.model": b"x",
    "LICENSE_keys.json": b"{}",
}
A_TENSOR = StoredTensor("x", "U8", (3,), b"abc")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny model in shards, with files beside it."""
    folder = make("llama", tmp_path_factory.mktemp("source") / "model", max_shard_size="60KB")
    for name, content in (SIDE | LEFT).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def opened(source):
    checkpoint = Checkpoint.open(source)
    assert checkpoint.anatomy.layers == 8  # builds the blueprint once, before any process is forked
    return checkpoint


def hashes(folder: Path) -> dict[str, str]:
    """Of all files but the card, which names the folder."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name != CARD)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(folder: Path) -> dict[str, bytes]:
    """Every tensor's type, shape and bytes, read by the safetensors library."""
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            found[name] = repr((tensor.dtype, tensor.shape)).encode() + tensor.view(torch.uint8).numpy().tobytes()
    return found


# The writer


def writer(tmp_path: Path, opened: Checkpoint) -> CheckpointWriter:
    return CheckpointWriter(tmp_path / "new" / "out", source=opened.directory, nbytes=3)


def test_a_writer_that_does_not_commit_leaves_only_what_others_made(tmp_path, opened):
    with suppress(KeyboardInterrupt), writer(tmp_path, opened) as writing:
        writing.json("config.json", {})
        writing.tensors([[A_TENSOR]])
        assert (writing.partial / SINGLE).exists()
        (tmp_path / "new" / "mine").touch()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "mine"]


def test_modes_follow_the_umask(tmp_path, opened):
    mask = 0o077
    before = os.umask(mask)
    try:
        prune(opened, plan(8, drop=2), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~mask}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask


def test_commit_replaces_no_folder_that_appeared_meanwhile(tmp_path, opened):
    """Made by a program that knows of no locks."""
    with writer(tmp_path, opened) as writing:
        writing.json("who.json", {"is": "ours"})
        (tmp_path / "new" / "out").mkdir()
        (tmp_path / "new" / "out" / "who.json").write_text("theirs")
        with pytest.raises(OutputError):
            writing.commit(provenance(opened, "prune", 0))
    assert (tmp_path / "new" / "out" / "who.json").read_text() == "theirs"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_a_locked_writer_keeps_its_folder(tmp_path, opened, monkeypatch):
    """Two containers of one name on one disk do not see each other's processes: the lock does."""
    with writer(tmp_path, opened) as first:
        monkeypatch.setattr("psutil.pid_exists", lambda _: False)
        with pytest.raises(OutputError):
            writer(tmp_path, opened).__enter__()
        assert first.partial.is_dir()


def test_a_weight_that_its_type_cannot_hold_is_refused(tmp_path):
    folder, name = make("llama", tmp_path / "model"), "model.layers.0.mlp.up_proj.weight"
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    weight = load_file(folder / SINGLE)[name].float()
    assert fitting.stored_tensors(Checkpoint.open(folder), {name: weight})[name].dtype == "F16"
    weight[0, 0] = 7e4
    with pytest.raises(CheckpointError, match=rf"{name} reaches 70000"):
        fitting.stored_tensors(Checkpoint.open(folder), {name: weight})


# Reading


def test_weights_lie_at_aligned_addresses_wherever_they_begin_in_their_file(tmp_path):
    folder = make("llama", tmp_path / "model")
    content = (folder / SINGLE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    header += b" " * ((4 - 8 - len(header)) % 64)
    (folder / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    model = Checkpoint.open(folder).model(dtype=torch.float32)
    stored = load_file(tiny("llama") / SINGLE)
    for name, weight in model.named_parameters():
        assert weight.data_ptr() % 64 == 0
        assert torch.equal(weight, stored[name])


# The cut


@pytest.fixture(scope="module")
def pruned(opened, tmp_path_factory):
    return prune(opened, plan(8, layers="1,4,5"), tmp_path_factory.mktemp("pruned") / "out")


KEPT = (0, 2, 3, 6, 7)


def original(name: str) -> str:
    """The source's name of a pruned model's tensor."""
    head, _, tail = name.partition("model.layers.")
    return name if not tail else f"{head}model.layers.{KEPT[int(tail.split('.')[0])]}.{tail.split('.', 1)[1]}"


def test_every_kept_tensor_is_the_sources(pruned, opened):
    before, after = weights(opened.directory), weights(pruned.directory)
    assert {original(name): value for name, value in after.items()} == {
        name: value for name, value in before.items() if name in {original(each) for each in after}
    }
    assert len(after) == 3 + 9 * len(KEPT)
    assert pruned.record["layer_map"] == {str(new): old for new, old in enumerate(KEPT)}


def test_shards_follow_the_source(pruned, opened):
    after = json.loads((pruned.directory / INDEX).read_text())
    before = json.loads((opened.directory / INDEX).read_text())["weight_map"]
    groups: dict[str, set[str]] = {}
    for name, file in after["weight_map"].items():
        groups.setdefault(file, set()).add(before[original(name)])
    assert all(len(origins) == 1 for origins in groups.values())
    assert len(groups) == len({origin for origins in groups.values() for origin in origins}) > 1
    check_index(pruned.directory)


def check_index(folder: Path) -> None:
    index, total, found = json.loads((folder / INDEX).read_text()), 0, {}
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    for file in files:
        shard = load_file(folder / file)
        found |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    assert index == {"metadata": {"total_size": total}, "weight_map": found}


def test_only_files_that_loaders_ask_for_are_copied(pruned, source, tmp_path):
    trusted = prune(Checkpoint.open(source, trust_remote_code=True), plan(8, drop=2), tmp_path / "out")
    for folder in (pruned.directory, trusted.directory):
        own = {path for path in folder.iterdir() if path.name != CARD}  # which is written anew
        beside = {path.name: path.read_bytes() for path in own if path.suffix != ".safetensors"}
        assert {name: beside[name] for name in SIDE} == SIDE
        assert beside.keys() - SIDE.keys() == {"config.json", INDEX, RECORD}


def test_every_vocabulary_of_transformers_is_on_the_list():
    """By the sources of its tokenizers, since importing all of them takes long."""
    declared = re.compile(r"VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", re.DOTALL)
    sources = [path.read_text() for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py")]
    tables = [match for source in sources for match in declared.findall(source)]
    assert {name for table in tables for name in re.findall(r':\s*"([^"]+)"', table)} <= BESIDE


def test_the_record_is_the_manifest_of_all_files(pruned):
    expected = {name: digest for name, digest in hashes(pruned.directory).items() if name != RECORD}
    manifest = pruned.record["files"]
    assert {name: file["sha256"] for name, file in manifest.items()} == expected
    assert all(file["size"] == (pruned.directory / name).stat().st_size for name, file in manifest.items())


def test_gpt2_as_the_hub_names_its_tensors(tmp_path):
    """No `transformer.` before h.0, as in the original upload."""
    model = Path(shutil.copytree(tiny("gpt2"), tmp_path / "model"))
    named = load_file(model / SINGLE)
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in named.items()}, model / SINGLE, {"format": "pt"}
    )
    outs = [
        prune(Checkpoint.open(folder), plan(8, layers="0,3"), tmp_path / name)
        for name, folder in (("bare", model), ("named", tiny("gpt2")))
    ]
    assert "h.5.ln_1.weight" in outs[0].tensors
    assert not any(name.startswith("transformer.") for name in outs[0].tensors)
    ids = torch.arange(3, 15).reshape(1, 12)
    with torch.no_grad():
        bare, full = (AutoModelForCausalLM.from_pretrained(out.directory)(ids).logits for out in outs)
    assert torch.equal(bare, full)


@pytest.mark.parametrize("name", ["PanicException", "KeyboardInterrupt"])
def test_a_panic_of_tokenizers_is_an_error_and_ctrl_c_is_not(name, tmp_path, monkeypatch):
    """The library behind fast tokenizers raises a BaseException of its own where it panics."""
    checkpoint, error = Checkpoint.open(speaking(tmp_path / "model")), type(name, (BaseException,), {})("range end")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", Mock(side_effect=error))
    with pytest.raises(CheckpointError if name == "PanicException" else type(error)):
        checkpoint.tokenizer()
