"""A request that cannot be carried out is one message with exit code 2, and leaves every file as it was."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from command import MESSAGE, snapshot
from shortstack import scoring
from shortstack.scoring import Scores
from zoo import make, speaking, tiny

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PLAIN = ("--metric", "reverse", "--drop", "2")


def prune_refused(command, model: object, *options: object, output: object = "out") -> str:
    return command.refused("prune", model, *(options or PLAIN), "-o", output)


@pytest.fixture
def model(tmp_path):
    """A copy of a tiny model, to break."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "model"))


@pytest.fixture
def worded(model):
    """A model with a tokenizer that knows 26 words of one letter."""
    special = {"unk_token": "<unk>"}
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{chr(97 + i): 3 + i for i in range(26)}}, **special))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(model)
    return model


def edit(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# The checkpoint


@pytest.mark.parametrize("name", ["none", "none.gguf", "x" * 300, "file.txt", "folder", "org/model", "org/--bad..name"])
def test_missing_model(name, command, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("text")
    assert name in prune_refused(command, name)


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**fields: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", lambda data: data.update(fields))


def index(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: edit(folder / INDEX, lambda data: change(data["weight_map"]))


def weights(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Change the stored tensors, which are then in one file."""

    def changed(folder: Path) -> None:
        tensors = {
            name: tensor for path in folder.glob("model-*.safetensors") for name, tensor in load_file(path).items()
        }
        for path in (folder / INDEX, *folder.glob("model-*.safetensors")):
            path.unlink()
        change(tensors)
        save_file(tensors, folder / SINGLE, {"format": "pt"})

    return changed


def fused(tensors: dict) -> None:
    """Name tensors as a quantised form may, which tells no layer."""
    values = list(tensors.values())
    tensors.clear()
    tensors.update((f"blocks.fused_{number}", tensor) for number, tensor in enumerate(values))


HEAD = "lm_head.weight"
BROKEN = {
    "config: empty": write("config.json", ""),
    "config: not JSON": write("config.json", "{"),
    "config: not UTF-8": write("config.json", b"\xff"),
    "config: a list": write("config.json", "[]"),
    "config: no type": write("config.json", "{}"),
    **{f"config: {kind}": config(model_type=kind) for kind in ("bert", "t5", "clip", "zork")},
    "config: width": config(hidden_size="big"),
    "config: activation": config(hidden_act="zork"),
    "config: more layers": config(num_hidden_layers=9),
    "config: no layers": config(num_hidden_layers=0),
    "config: no vocabulary": config(vocab_size=0),
    "config: negative": config(intermediate_size=-3),
    "config: no heads": config(num_attention_heads=0),
    "config: padding": config(pad_token_id=1000),
    "config: rope": config(rope_parameters={"rope_type": "zork"}),
    "index: missing tensor": index(lambda names: names.update(none=names[HEAD])),
    "index: missing entry": index(lambda names: names.pop(HEAD)),
    "index: no map": lambda folder: edit(folder / INDEX, lambda data: data.pop("weight_map")),
    **{
        f"index: {name!r:.20}": index(lambda names, name=name: names.update({HEAD: name}))
        for name in (["x"], 5, "..", "a\0b")
    },
    "no index": lambda folder: (folder / INDEX).unlink(),
    "no weights": lambda folder: [path.unlink() for path in folder.glob("*.safetensors*")],
    "missing shard": lambda folder: next(folder.glob("model-*.safetensors")).unlink(),
    "missing norm": weights(lambda tensors: tensors.pop("model.norm.weight")),
    "missing matrix": weights(lambda tensors: tensors.pop("model.layers.7.mlp.up_proj.weight")),
    "superfluous matrix": weights(lambda tensors: tensors.update(other=tensors[HEAD].clone())),
    "no layer numbers": weights(fused),
    "record: not JSON": write("shortstack.json", "{"),
    "record: foreign": write("shortstack.json", '{"verb": "prune", "files": {}, "layer_map": [1]}'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoint(case, command, tmp_path):
    folder = make("llama", tmp_path / "model", max_shard_size="100KB")
    BROKEN[case](folder)
    prune_refused(command, folder)
    if case.startswith("record"):
        command.refused("verify", folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes")
def test_pipe_in_place_of_a_shard_is_not_waited_for(command, tmp_path):
    folder = make("llama", tmp_path / "model", max_shard_size="100KB")
    shard = next(folder.glob("model-*.safetensors"))
    shard.unlink()
    os.mkfifo(shard)
    assert shard.name in prune_refused(command, folder)


@pytest.mark.parametrize(
    "words",
    [
        "score --metric bi --calibration-data pydoc --stream -o new.json",
        "score --metric ppl --calibration-data pydoc --no-stream -o new.json",
        "score --metric magnitude-l2 --calibration-data pydoc -o new.json",
        "score --depth-curve -o new.json",
        "evaluate -o new.json",
        "plan --strategy search --drop 2 -o new.json",
    ],
)
def test_nan_weights_are_an_error(words, command, model):
    folder = speaking(model)
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.3.mlp.up_proj.weight"][5, 7] = math.nan
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    verb, *options = words.split()
    code, out, err = command(verb, folder, *options, "--num-samples", "4", "--seq-length", "8", "-q")
    assert (code, out) == (1, "")
    assert MESSAGE.fullmatch(err)
    assert "NaN" in err
    assert not (command.folder / "new.json").exists()


# Options

REFUSED = {  # words, and the option or file that the message begins with
    "prune model -o out --layers 0-7": "--layers",
    "prune model -o out --layers 3 --metric bi": "--layers",
    "prune model -o out --drop 2 --num-samples 0": "--num-samples",
    "prune model -o out --drop 2 --num-samples many": "--num-samples",
    "prune model -o out --drop 1 --metric zork": "--metric",
    "score model --metric bi --calibration-data missing.txt": "missing.txt",
    "score model --metric bi --calibration-data empty.txt": "empty.txt",
    "score model --metric bi --calibration-data short.txt": "short.txt",
    "score model --metric bi --calibration-data latin.txt": "latin.txt",
    "score model --metric bi --calibration-data broken.jsonl": "broken.jsonl",
    "score model --metric bi --calibration-data object.json": "object.json",
    "evaluate model --perplexity copying": "--num-samples",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_option(words, command, worded, tmp_path):
    contents = {"empty.txt": b"", "short.txt": b"a b c", "latin.txt": "caf\xe9 a".encode("latin-1")}
    contents |= {"broken.jsonl": b'{"text": "a"}\n{"text": "b"\n', "object.json": b'{"text": "a"}'}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert command.refused(*words.split()).startswith(f"Error: {REFUSED[words]}")


UNUSED = {
    "plan scores.json --drop 2": ("--calibration-data x", "--seed 1", "--revision main"),
    "prune model -o out --plan plan.json": ("--num-samples 5", "--seed 1", "--drop 2"),
    "prune model -o out --layers 3": ("--num-samples 5", "--calibration-data x", "--repair-samples 9"),
    "profile model --no-speed": ("--batch-size 4", "--repeats 3"),
    "evaluate model": ("--limit 2",),
}


@pytest.mark.parametrize("words", UNUSED)
def test_option_without_effect_is_refused(words, command, model):
    assert command("score", model, "--metric", "reverse", "-o", "scores.json")[0] == 0
    assert command("plan", "scores.json", "--drop", "2", "-o", "plan.json")[0] == 0
    for option in UNUSED[words]:
        assert option.split()[0] in command.refused(*words.split(), *option.split())


# The output


def test_output_that_exists_or_lies_in_the_input(command, model, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(model)
    outputs = ["file", ".", "/", "dangling", "file/out", "x" * 300]
    outputs += ["model", "model/", "model/out", "model/a/b", "link", "link/out", "link/config.json/.."]
    for output in outputs:
        prune_refused(command, "model", output=output)
    prune_refused(command, "link/", output="model/out")
    for verb, given in (("score", ()), ("plan", ("--drop", "1"))):
        for output in ("file", "none/out.json"):
            assert output.split("/")[0] in command.refused(verb, "model", "--metric", "reverse", *given, "-o", output)


def test_too_small_disk_is_refused_before_anything_is_written(command, model, monkeypatch):
    size = (model / SINGLE).stat().st_size
    usage = shutil.disk_usage(model)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=(16 << 20) + size // 2))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("something was made"))
    assert "free disk" in prune_refused(command, model)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        ImportError("failed to map segment"),
    ],
)
def test_full_disk_or_memory_is_one_message_and_leaves_nothing(error, command, model, monkeypatch):
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=error))
    before = snapshot(command.folder)
    code, out, err = command("prune", model, *PLAIN, "-o", "out", "-q")
    assert (code, out) == (1, "")
    assert MESSAGE.fullmatch(err)
    assert (getattr(error, "strerror", None) or str(error) or "MemoryError") in err
    assert snapshot(command.folder) == before


def test_verbose_shows_a_traceback(command):
    code, out, err = command("plan", "none", "--drop", "2", "-v")
    assert (code, out) == (2, "")
    assert "Traceback" in err
    assert MESSAGE.search(err)


# What is printed


def test_next_step_can_be_pasted_whatever_the_names(command, model, tmp_path):
    code, _, err = command("score", model, "--metric", "reverse", "-o", "my scores.txt")
    assert code == 0
    words = shlex.split(err.rpartition("Next: ")[2])
    assert words[:3] == ["shortstack", "plan", "my scores.txt"]
    edit(tmp_path / "my scores.txt", lambda data: data["model"].update(source="x; rm -rf /"))
    code, _, err = command(*words[1:])
    assert code == 0
    assert shlex.split(err.rpartition("Next: ")[2])[:3] == ["shortstack", "prune", "x; rm -rf /"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_stdout_is_one_message_and_code_1(unbuffered):
    """Python buffers what it prints to a file, and ignores a failure to write it at exit."""
    words = [sys.executable, "-m", "shortstack", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        ran = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert ran.returncode == 1
    assert MESSAGE.fullmatch(ran.stderr)


SCORED = ("score", "model", "--metric", "reverse", "-o", "scores.json", "--plot", "scores.svg")


def test_closed_stdout_costs_no_file(command, model, tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        code, _, err = command(*SCORED, "-q")
        monkeypatch.undo()
    assert (code, err) == (1, "")
    assert Scores.load(tmp_path / "scores.json").layers == 8
    assert (tmp_path / "scores.svg").exists()


def test_output_that_appears_meanwhile_is_not_replaced(command, model, monkeypatch):
    out, score = command.folder / "scores.json", scoring.score

    def meanwhile(*args, **options):
        out.write_text("theirs", encoding="utf-8")
        return score(*args, **options)

    monkeypatch.setattr(scoring, "score", meanwhile)
    code, printed, _ = command(*SCORED, "-q")
    assert code == 2
    assert "order of removal" in printed, "the result is not lost"
    assert out.read_text(encoding="utf-8") == "theirs"
