"""Whatever cannot be done is one message with exit code 2, and leaves every file as it was."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import architectures
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from command import MESSAGE, snapshot
from shortstack import scoring
from shortstack.cli import console
from shortstack.evaluation.suites import unknown
from shortstack.machine.device import pick_device
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
def sharded(tmp_path):
    folder = make("llama", tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


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


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("none", "no such file or directory"),
        ("none.gguf", "no such file or directory"),
        ("x" * 300, "no such file or directory"),
        ("file.txt", "a file"),
        ("folder", "no such file"),
        ("org/model", "outgoing traffic has been disabled"),
        ("org/--bad..name", "Repo id must"),
    ],
)
def test_a_model_that_is_not_there(name, found, command, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("text")
    assert found in prune_refused(command, name)


@pytest.mark.parametrize("failure", ["transport", "not JSON", "unreachable"])
def test_a_hub_that_answers_badly_or_not(failure, command, monkeypatch):
    from huggingface_hub import errors

    transport = errors.HfHubHTTPError.__bases__[0]
    error, said = transport("Server disconnected"), "Server disconnected"
    if failure == "not JSON":
        error, said = json.JSONDecodeError("a page", "<html>", 0), "a page"
    if failure == "unreachable":
        error, said = errors.LocalEntryNotFoundError("no snapshot here"), "no connection to the hub: no such host"
        error.__cause__ = transport("no such host")

    def answer(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    assert said in prune_refused(command, "org/model")


CONFIGS = {
    "empty": ("", "Expecting value"),
    "not JSON": ("{", "Expecting property name"),
    "not UTF-8": (b"\xff", "codec can't decode"),
    "a list": ("[]", "[]"),
    "no model_type": ("{}", "{}"),
    "encoder": ('{"model_type": "bert"}', "bert, an encoder"),
    "encoder-decoder": ('{"model_type": "t5"}', "t5, an encoder-decoder"),
    "no language model": ('{"model_type": "clip"}', "clip, which has no causal language model"),
    "unknown": ('{"model_type": "zork"}', "model_type 'zork'"),
    "wrong type": ('{"model_type": "llama", "hidden_size": "big"}', "hidden_size"),
    "unknown activation": ('{"model_type": "llama", "hidden_act": "zork"}', "zork"),
    "more layers than weights": ('{"model_type": "llama", "num_hidden_layers": 9}', "{'model.layers': 8}"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be_used(case, command, model):
    content, found = CONFIGS[case]
    (model / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert found in prune_refused(command, model)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"num_hidden_layers": 0}, "found     0"),
        ({"vocab_size": 0}, "to be built from its config"),
        ({"intermediate_size": -3}, "negative dimension -3"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"pad_token_id": 1000}, "AssertionError: Padding_idx"),
        ({"rope_parameters": {"rope_type": "zork"}}, "zork"),
    ],
)
def test_a_config_that_builds_no_model(fields, found, command, model):
    edit(model / "config.json", lambda config: config.update(fields))
    assert found in prune_refused(command, model)


def test_no_weights_and_shards_without_index(command, model):
    shutil.move(model / SINGLE, model / "model-00001-of-00002.safetensors")
    shutil.copy(model / "model-00001-of-00002.safetensors", model / "model-00002-of-00002.safetensors")
    assert "no index" in prune_refused(command, model)
    for path in model.glob("*.safetensors"):
        path.unlink()
    assert "no weights" in prune_refused(command, model)


def remap(name: str) -> Callable[[dict], object]:
    return lambda index: index["weight_map"].update({"lm_head.weight": name})


INDICES = {
    "missing tensor": (lambda index: index["weight_map"].update(none=index["weight_map"]["lm_head.weight"]), "none in"),
    "missing entry": (lambda index: index["weight_map"].pop("lm_head.weight"), "an unlisted lm_head.weight in model-"),
    "no map": (lambda index: index.pop("weight_map"), "weight_map"),
    "list for a name": (remap(["x"]), "unhashable"),
    "number for a name": (remap(5), "not supported"),
    "a folder for a name": (remap(".."), "'..'"),
    "name too long": (remap("x" * 300 + ".safetensors"), "a readable safetensors file"),
    "name with a null": (remap("x\0.safetensors"), "inside the checkpoint's folder"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_that_lies(case, command, sharded):
    change, found = INDICES[case]
    edit(sharded / INDEX, change)
    assert found in prune_refused(command, sharded)


def test_a_missing_shard_is_named(command, sharded):
    gone = sorted(sharded.glob("model-*.safetensors"))[1]
    gone.unlink()
    assert gone.name in prune_refused(command, sharded)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.7.mlp.up_proj.weight"])
def test_a_weight_that_is_missing_or_has_no_place(name, command, model):
    tensors = load_file(model / SINGLE)
    weight = tensors.pop(name)
    save_file(tensors, model / SINGLE, {"format": "pt"})
    assert f"1 missing: {name}" in prune_refused(command, model)
    save_file({**tensors, name: weight, f"{name}_2": weight.clone()}, model / SINGLE, {"format": "pt"})
    assert f"1 without a place in the model: {name}_2" in prune_refused(command, model)


@pytest.fixture
def broken(model):
    """A model with a weight that is no number."""
    folder = speaking(model)
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.3.mlp.up_proj.weight"][5, 7] = math.nan
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ("score --metric bi --text pydoc --stream -o new.json", "metric bi, layer [0-3]"),
        ("score --metric ppl --text pydoc --no-stream -o new.json", "metric ppl, layer [0-3]"),
        ("score --metric magnitude-l2 --text pydoc -o new.json", "metric magnitude-l2, layer [0-3]"),
        ("score --depth-curve -o new.json", ".+"),
        ("evaluate -o new.json", ".+"),
        ("plan --strategy search --drop 2 -o new.json", ".+"),
    ],
)
def test_weights_that_are_no_numbers_are_said_to_be_so(words, where, command, broken):
    verb, *options = words.split()
    code, out, err = command(verb, broken, *options, "--samples", "4", "--length", "8", "-q")
    assert (code, out) == (1, "")
    assert re.match(rf"Error: {where}\n  expected  a number\n  found     NaN\n", err)
    assert not (command.folder / "new.json").exists()


def test_layers_that_a_quantised_form_hides(command, model):
    tensors = load_file(model / SINGLE)
    fused = {f"blocks.fused_{number}": tensor for number, tensor in enumerate(tensors.values())}
    save_file(fused, model / SINGLE)
    edit(model / "config.json", lambda config: config.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    assert "no tensor with a layer number" in prune_refused(command, model)


@pytest.mark.parametrize("record", ["{", '{"verb": "prune", "files": {}, "layer_map": [1]}'])
def test_a_record_that_shortstack_did_not_write(record, command, model):
    (model / "shortstack.json").write_text(record)
    for words in (("prune", *PLAIN, "-o", "out"), ("verify",)):
        assert "shortstack.json" in command.refused(words[0], model, *words[1:])


# The cut


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("--layers 0-7", "all 8 removed"),
        ("--layers 3 --metric bi", "layers or metric, not both"),
        ("--drop 2 --step 1 --strategy search", "strategy or step, not both"),
        ("--memory 240", "240 without a unit\n  to fix it write 240MB or 240GB"),
        ("--drop 2 --samples 0", "found     '0'"),
        ("--drop 2 --samples many", "a number of windows, or all"),
        ("--drop 1 --metric zork", "one of random, reverse, magnitude-l1"),
    ],
)
def test_a_cut_that_cannot_be_made(options, found, command, model):
    assert found in command.refused("prune", model, "-o", "out", *options.split())


PLANS = {
    "missing": (None, "No such file"),
    "too deep": ("[" * 100_000, "recursion"),
    "another depth": ('{"layers": 9, "removed": [1], "strategy": "x"}', "a plan for 9 layers"),
    "another width": (
        '{"layers": 8, "removed": [1], "strategy": "x", "parameters": {"before": 9000, "after": 8000}}',
        "a plan for a model of 9,000",
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_cannot_be_used(case, command, model, tmp_path):
    content, found = PLANS[case]
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    assert found in command.refused("prune", model, "--plan", "plan.json", "-o", "out")


SCORES = {
    "no metric": (lambda data: data.update(scores={}), "none"),
    "no sizes": (lambda data: data.update(model={}), "KeyError('layer_parameters')"),
    "other sizes": (lambda data: data["model"].update(layer_bytes=[1] * 7, layer_parameters=[1] * 7), "7 layers"),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_that_cannot_be_used(case, command, model, tmp_path):
    change, found = SCORES[case]
    assert command("score", model, "--metric", "reverse", "-o", "scores.json")[0] == 0
    edit(tmp_path / "scores.json", change)
    assert found in command.refused("plan", "scores.json", "--drop", "2", "-o", "plan.json")


# The output


def test_an_output_that_is_there_or_in_the_input(command, model, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(model)
    places = {
        "it exists": ["file", "folder", "folder/", ".", "/", "dangling", "link/config.json/.."],
        "it is in": ["model", "model/", "model/.", "model/out", "model/out/", "model/a/b", "link", "link/out", "link/"],
        "file, which cannot": ["file/out"],
        "File name too long": ["x" * 300],
    }
    for found, outputs in places.items():
        for output in outputs:
            message = prune_refused(command, "model", output=output)
            assert found in message or ("link" in output and "it " in message), (output, message)
    assert "it is in" in prune_refused(command, "link/", output="model/out")
    for verb, given in (("score", ()), ("plan", ("--drop", "1"))):
        for output in ("file", "none/out.json"):
            message = command.refused(verb, "model", "--metric", "reverse", *given, "-o", output)
            assert output.split("/")[0] in message


def test_a_disk_too_small_is_found_before_anything_is_written(command, model, monkeypatch):
    size = (model / SINGLE).stat().st_size
    usage = shutil.disk_usage(model)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=(16 << 20) + size // 2))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("something was made"))
    assert "of free disk" in prune_refused(command, model)


@pytest.fixture
def failing(monkeypatch):
    """Make the system fail as it is told while a checkpoint is written."""

    def fails_with(error):
        monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=error))

    return fails_with


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OSError(28, "No space left on device"), ""),
        (OSError(12, "Cannot allocate memory"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (MemoryError(), "memory"),
        (ImportError("failed to map segment"), "memory"),
    ],
)
def test_a_full_disk_or_memory_is_one_message_and_leaves_nothing(error, where, command, model, failing):
    failing(error)
    before = snapshot(command.folder)
    code, out, err = command("prune", model, *PLAIN, "-o", "out", "-q")
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {where}")
    assert err.count("Error:") == 1
    assert (getattr(error, "strerror", None) or str(error) or "MemoryError") in err
    assert snapshot(command.folder) == before


def test_other_errors_of_libraries_are_raised(command, model, failing):
    failing(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        command("prune", model, *PLAIN, "-o", "out", "-q")


def test_a_healed_checkpoint_with_a_second_matrix_is_measured_with_it(command, model, monkeypatch):
    make("llama", model, tie_word_embeddings=True)
    size, usage = (model / SINGLE).stat().st_size, shutil.disk_usage(model)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=(16 << 20) + size))
    said = command.refused("heal", model, "--data", "pydoc", "--untie-embeddings", "-o", command.folder / "out")
    assert "of free disk" in said


def test_verbose_shows_where_an_error_comes_from(command):
    code, out, err = command("plan", "none", "--drop", "2", "-v")
    assert (code, out) == (2, "")
    assert "Traceback" in err
    assert MESSAGE.search(err)


def test_a_device_that_is_not_there(command, model):
    for device in {"cuda", "mps"} - {pick_device("auto")}:
        asked = ("--metric", "bi", "--samples", "1", "--device", device)
        assert device in command.refused("score", speaking(model), *asked)
        assert command("prune", model, *PLAIN, "-o", device, "-q")[0] == 0
        assert "--device" in command.refused("verify", device, "--device", device), "though nothing is computed"


def test_more_tokens_than_a_model_has_positions(command, tmp_path):
    folder = speaking(tmp_path / "gpt2", "gpt2")
    for options in (("score", folder, "--metric", "bi", "--samples", "1"), ("evaluate", folder, "--samples", "1")):
        assert "at most 64 tokens" in command.refused(*options)
    assert command("evaluate", folder, "--samples", "1", "--length", "64")[0] == 0


def test_a_revision_is_that_of_the_model_a_cut_is_verified_against(command, model, monkeypatch):
    asked = []

    def snapshot(name: str, *, revision: str, **_: object) -> str:
        asked.append((name, revision))
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert command("prune", model, *PLAIN, "-o", "out")[0] == 0
    code, out, err = command("verify", "out", "--against", "org/model", "--revision", "v2")
    assert (code, asked) == (0, [("org/model", "v2")])
    assert "difference 0 without layers 6-7" in " ".join(re.sub("[│┃]", "", out).split())
    assert "--revision" not in err
    told = shlex.split(err.rpartition("Next: ")[2])
    assert told[told.index("--teacher") + 1] == str(model), "the folder of that revision: heal takes none"
    assert "the local" in command.refused("verify", "out", "--against", model, "--revision", "v2")


def test_a_directory_is_a_model_whatever_its_name(command, tmp_path):
    folder = make("llama", tmp_path / "scores.json")
    code, out, _ = command("plan", folder, *PLAIN, "--json")
    assert (code, json.loads(out)["removed"]) == (0, [6, 7])


def test_a_pipe_among_the_shards_is_not_waited_for(command, sharded):
    shard = next(sharded.glob("model-*.safetensors"))
    shard.unlink()
    os.mkfifo(shard)
    assert "a pipe, a socket or a device" in prune_refused(command, sharded)


def test_a_file_that_may_not_be_read_is_bad_input(command, model, monkeypatch):
    def forbidden(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", "config.json")

    monkeypatch.setattr(Path, "read_text", forbidden)
    assert "Permission denied" in prune_refused(command, model)


@pytest.mark.parametrize(("name", "near"), [("piqua", "piqa"), ("paperr", "paper")])
def test_a_task_nobody_has_is_asked_about_with_the_nearest_one(name, near, capsys):
    console.fail(unknown(name, ["piqa_ar", "pisa"]))
    said = capsys.readouterr().err
    assert MESSAGE.fullmatch(said)
    assert said.endswith(f"\n  found     {name!r}\n  did you mean {near}?\n")


def test_the_next_step_can_be_pasted_whatever_the_names(command, model, tmp_path):
    code, _, err = command("score", model, "--metric", "reverse", "-o", "my scores.txt")
    assert code == 0
    words = shlex.split(err.rpartition("Next: ")[2])
    assert words[:3] == ["shortstack", "plan", "my scores.txt"]
    edit(tmp_path / "my scores.txt", lambda data: data["model"].update(source="x; rm -rf /"))
    code, _, err = command(*words[1:])
    assert code == 0
    assert shlex.split(err.rpartition("Next: ")[2])[:3] == ["shortstack", "prune", "x; rm -rf /"]


@pytest.mark.parametrize(
    ("words", "verb", "named"),
    [
        (("profile", "--no-speed"), "evaluate", "--against"),
        (("evaluate", "--perplexity", "text.txt"), "heal", "--teacher"),
    ],
)
def test_the_next_step_names_the_unpruned_model_as_it_was_typed(words, verb, named, command, tmp_path):
    speaking(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the walk visits every layer " * 200)
    assert command("prune", tmp_path / "model", *PLAIN, "-o", "cut")[0] == 0
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    small = ("--length", "8", "--no-collapse-check") if words[0] == "evaluate" else ()
    code, _, err = command(words[0], "cut", *words[1:], *small, "--against", "elsewhere")
    assert code == 0, err
    told = shlex.split(err.rpartition("Next: ")[2])
    assert told[:3] == ["shortstack", verb, "cut"]
    assert told[told.index(named) + 1] == "elsewhere"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate model --perplexity copying", "--samples"),
        ("evaluate model --perplexity self --samples 8", "self"),
    ],
)
def test_a_text_that_cannot_be_measured_on_is_refused_by_the_option_that_says_it(words, said, command, tmp_path):
    speaking(tmp_path / "model")
    assert said in command.refused(*words.split())


UNUSED = {
    "plan scores.json --drop 2": ("--text x", "--seed 1", "--revision main"),
    "prune model -o out --plan plan.json": ("--samples 5", "--seed 1", "--drop 2"),
    "prune model -o out --layers 3": ("--samples 5", "--text x", "--repair-samples 9"),
    "profile model --no-speed": ("--batch-size 4", "--repeats 3"),
    "evaluate model": ("--limit 2",),
    "verify model": ("--revision main",),
}


@pytest.mark.parametrize("words", UNUSED)
def test_options_that_change_nothing_are_refused(words, command, model):
    assert command("score", model, "--metric", "reverse", "-o", "scores.json")[0] == 0
    assert command("plan", "scores.json", "--drop", "2", "-o", "plan.json")[0] == 0
    for option in UNUSED[words]:
        said = command.refused(*words.split(), *option.split())
        assert f"no {option.split()[0]}: it has no effect here" in said


def test_an_infinite_score_survives_the_file(tmp_path):
    scores = Scores(3, {"ppl": (2.0, math.inf, 1.0)})
    scores.save(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["scores"]["ppl"] == [2.0, None, 1.0]
    assert Scores.from_dict(json.loads((tmp_path / "scores.json").read_text()), where="x").scores == scores.scores


def test_a_cut_that_is_not_exact_is_moved_and_said_so(command, tmp_path):
    folder = architectures.make("diffllama", tmp_path / "diffllama")
    code, out, err = command("plan", folder, "--metric", "random", "--drop", "2", "--seed", "1", "--json")
    assert code == 0
    assert json.loads(out)["removed"] == [6, 7]
    assert "cannot be cut exactly from this model; nearest exact cut: 6-7" in err
    assert "the nearest exact cut: layers 6-7" in command.refused("plan", folder, "--layers", "2-3")
    kept = command.refused("plan", folder, "--metric", "random", "--drop", "2", "--keep-last", "1")
    assert "lambda_init" in kept, "a plan is never moved onto a layer that must stay"


def test_ls_lists_what_can_be_named(command):
    code, out, _ = command("ls", "--json")
    found = json.loads(out)
    assert code == 0
    names = {row["name"] for row in found["metrics"]}
    assert names >= {"random", "reverse", "magnitude-l1", "magnitude-l2", "taylor", "ppl", "bi"}, "the paper's seven"
    assert [row["name"] for row in found["methods"]] == ["partial", "lora", "rslora", "dora", "qlora", "full"]
    assert set(found["methods"][0]) == {"name", "trains", "paper"}
    data = {row["name"]: row["hub_data"] for row in found["recipes"]}
    assert (data["best"], data["paper-lora"]) == ("none", "yahma/alpaca-cleaned")


# The text


TEXTS = {
    "missing.txt": (None, "No such file"),
    "none": (None, "none of these"),
    "org/none": (None, "org/none"),
    "empty.txt": (b"", "an empty file"),
    "blank.txt": (b" \n\t\n", "nothing but white space"),
    "latin.txt": ("caf\xe9 a".encode("latin-1"), "byte 0xe9 at position 3"),
    "short.txt": (b"a b c", "text for 0"),
    "few.txt": (b"a " * 300, "text for 2"),
    "broken.jsonl": (b'{"text": "a"}\n\n{"text": "b"\n', "line 3"),
    "keys.jsonl": (b'{"text": "a"}\n{"txt": "b"}\n', "line 2"),
    "object.json": (b'{"text": "a"}', "a dict"),
    "entry.json": (b'[{"text": "a"}, 5]', "entry 2"),
    "broken.json": (b"[", "Expecting value"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_cannot_be_used(name, command, worded, tmp_path):
    content, found = TEXTS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = prune_refused(command, worded, "--drop", "1", "--metric", "bi", "--text", name)
    assert found in message


@pytest.mark.parametrize(("name", "fix"), [("drils", "did you mean drills?"), ("text", "check the name or the path")])
def test_a_text_of_no_such_name_is_said_with_its_option_and_the_nearest_name(name, fix, command, worded):
    message = prune_refused(command, worded, "--drop", "1", "--metric", "bi", "--text", name)
    assert f"--text: {name}" in message
    assert fix in message


def test_a_weight_of_nothing_is_said_with_its_option(command, worded):
    message = command.refused("shrink", worded, "--drop", "1", "--data", "drills=0", "-o", "out")
    assert "--data: drills=0" in message


def test_lines_end_at_newlines_only(command, worded, tmp_path):
    text = "a b\u2028c\x85d " * 80
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    options = ("--metric", "bi", "--text", "lines.jsonl", "--samples", "1")
    assert command("prune", worded, "--drop", "1", *options, "-o", "out")[0] == 0


def test_a_model_without_tokenizer_is_not_scored_on_text(command, model):
    assert "tokenizer.json" in prune_refused(command, model, "--drop", "1", "--metric", "bi")


# What is said of files that are something else, and of places that cannot be written


def test_a_plan_and_scores_are_told_apart(command, worded, tmp_path):
    (tmp_path / "t.txt").write_text("a b c d e f g h " * 200)
    asked = ("--metric", "bi", "--text", "t.txt", "--samples", "2", "--length", "16")
    assert command("score", worded, *asked, "-o", "scores.json", "-q")[0] == 0
    assert command("plan", "scores.json", "--metric", "bi", "--drop", "1", "-o", "plan.json", "-q")[0] == 0
    assert "the JSON that `shortstack plan -o` writes" in prune_refused(command, worded, "--plan", "scores.json")
    said = command.refused("plan", "plan.json", "--metric", "bi", "--drop", "1")
    assert "the JSON that `shortstack score -o` writes" in said


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_place_that_only_looks_as_if_it_could_be_written_is_refused_before_work(command, worded):
    for words in (("prune", worded, *PLAIN), ("score", worded, "--metric", "bi", "--text", "pydoc")):
        suffix = ".json" if words[0] == "score" else ""
        said = command.refused(*words, "-o", f"/proc/out{suffix}")
        assert "found     /proc, which cannot" in said


def test_a_terminal_without_signs_gets_a_table(command, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert command("ls", "metrics")[0] == 0
    assert b"sum over matrices" in terminal.buffer.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_said_once_and_ends_in_1(unbuffered):
    """Python holds back what it prints to a file, and says nothing where that fails when it ends."""
    words = [sys.executable, "-m", "shortstack", "--help"]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}
        )
    assert ran.returncode == 1
    assert ran.stderr.count("No space left on device") == 1
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


SCORED = ("score", "model", "--metric", "reverse", "-o", "scores.json", "--plot", "scores.svg")


def test_who_stops_reading_hears_no_more_and_has_the_files(command, model, tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        code, _, err = command(*SCORED, "-q")
        monkeypatch.undo()
    assert (code, err) == (1, "")
    assert Scores.load(tmp_path / "scores.json").layers == 8
    assert (tmp_path / "scores.svg").exists()


def test_a_result_replaces_nothing_that_has_appeared_meanwhile(command, model, monkeypatch):
    out, score = command.folder / "scores.json", scoring.score

    def meanwhile(*args, **options):
        out.write_text("theirs", encoding="utf-8")
        return score(*args, **options)

    monkeypatch.setattr(scoring, "score", meanwhile)
    code, said, err = command(*SCORED, "-q")
    assert code == 2
    assert "order of removal" in said, "the result is not lost"
    assert "it exists" in err
    assert out.read_text(encoding="utf-8") == "theirs"


def test_a_disk_that_is_full_does_not_cost_the_result(command, model, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device", "scores.json")

    monkeypatch.setattr("shortstack.cli.options.save_json", full)
    code, out, err = command(*SCORED, "-q")
    assert code == 1
    assert "order of removal" in out
    assert "room to write" in err
