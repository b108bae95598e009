"""Models and data however they are given: by name, as folders, or in memory."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import shortstack as ss
from plans import plan
from shortstack.errors import InputError
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")
TEXTS = [f"line {number} of a text that is long enough for a window or two" for number in range(40)]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}] for text in TEXTS]
FP32 = ss.Compute(dtype="float32")


@pytest.fixture
def folder(tmp_path):
    return speaking(tmp_path / "model")


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("form", [str, ss.Checkpoint.open, loaded])
def test_functions_take_a_model_in_every_form(form, folder, tmp_path):
    model, checkpoint = form(folder), ss.Checkpoint.open(folder)
    tokens = ss.Tokens.read("pydoc", checkpoint.tokenizer(), samples=8, length=16)
    assert ss.score(model, tokens, compute=FP32).scores == ss.score(checkpoint, tokens, compute=FP32).scores
    assert ss.depth_curve(model, tokens, compute=FP32).depths == ss.depth_curve(checkpoint, tokens, compute=FP32).depths
    pruned = ss.prune(model, ss.select_layers(model, metric="reverse", drop=2), tmp_path / "cut")
    assert ss.verify(pruned.directory, base=model).ok
    untimed = ss.Timing(batch_size=())
    assert ss.profile(model, timing=untimed).model == ss.profile(checkpoint, timing=untimed).model
    config = ss.EvalConfig(seq_length=64, num_samples=2)
    found, expected = (
        ss.evaluate(each, config, compute=FP32).perplexity["pydoc"].value for each in (model, checkpoint)
    )
    assert found == expected


@pytest.mark.parametrize("kind", ["end token", "template"])
def test_a_loaded_model_is_kept_with_what_is_beside_its_weights(kind, folder):
    model = loaded(folder)
    before = ss.Checkpoint.of(model)
    if kind == "end token":
        model.generation_config.eos_token_id = [2, 7]
    else:
        words = AutoTokenizer.from_pretrained(folder)
        words.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        words.save_pretrained(folder)
    after = ss.Checkpoint.of(model)
    assert after.directory != before.directory
    assert after.tokenizer().chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    assert after.model(dtype=torch.float32).generation_config.eos_token_id == model.generation_config.eos_token_id
    assert ss.Checkpoint.of(model).directory == after.directory


def test_a_loaded_model_is_what_it_is_now(folder):
    model = loaded(folder)
    before = ss.Checkpoint.of(model)
    assert ss.Checkpoint.of(model).directory == before.directory
    assert before.tokenizer().get_vocab() == ss.Checkpoint.open(folder).tokenizer().get_vocab()
    assert before.source == str(folder)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.add_(0.5)
    after = ss.Checkpoint.of(model)
    assert after.directory != before.directory
    again = after.model(dtype=torch.float32)
    assert torch.equal(again.model.layers[3].mlp.up_proj.weight, model.model.layers[3].mlp.up_proj.weight)


def test_nobody_is_told_that_a_model_in_memory_is_still_the_hub_s(tmp_path, monkeypatch):
    """Loaded from a place that is called as one of the hub."""
    speaking(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    model = loaded("org/model")
    model.config._commit_hash = "c" * 40
    written = ss.prune(model, plan(8, layers="3"), tmp_path / "cut")
    source = written.record["source"]
    assert (source["id"], source["revision"], source["in_memory"]) == ("org/model", "c" * 40, True)
    card = (written.directory / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in card
    assert "shortstack prune MODEL " in card


def test_what_is_no_plain_model_is_refused(folder):
    with pytest.raises(InputError, match="a Linear is no model"):
        ss.Checkpoint.of(torch.nn.Linear(2, 2))
    config = loaded(folder).config
    with torch.device("meta"):
        away = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="elsewhere"):
        ss.Checkpoint.of(away)


def test_a_model_with_adapters_is_refused_until_they_are_merged(folder):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(loaded(folder), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="has adapters"):
        ss.Checkpoint.of(adapted)
    assert ss.Checkpoint.of(adapted.merge_and_unload()).anatomy.layers == 8


@pytest.mark.parametrize("kind", ["text", "messages"])
@pytest.mark.parametrize("dataset", [False, True])
def test_rows_in_memory_are_a_file_of_the_same_lines(kind, dataset, folder, tmp_path):
    lines = [{kind: row} for row in {"text": TEXTS, "messages": CHATS}[kind]]
    rows = Dataset.from_list(lines) if dataset else [line[kind] for line in lines]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = ss.Checkpoint.open(folder).tokenizer()
    one, other = (ss.Text(source, 4, 16).tokens(tokenizer) for source in (rows, str(file)))
    assert torch.equal(one.ids, other.ids)
    assert ss.Text(rows).source == ss.Text(iter(rows)).source == ss.EvalConfig(Dataset.from_list(lines)).perplexity[0]


def test_functions_look_at_rows_as_at_a_file_of_them(folder, tmp_path):
    file, texts = tmp_path / "rows.jsonl", [" ".join(TEXTS[at : at + 10]) for at in range(30)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    of_rows, of_file = (ss.score(str(folder), source, compute=FP32) for source in (texts, str(file)))
    assert of_rows.scores == of_file.scores
    assert of_rows.tokens["samples"] == 10
    selected = ss.select_layers(str(folder), texts, metric="ppl", drop=2, compute=FP32)
    assert selected.removed == tuple(sorted(of_file.order("ppl")[:2]))
    repaired, expected = (
        ss.prune(folder, [3], tmp_path / name, repair=ss.Text(source, 16, 16), compute=FP32)
        for name, source in (("rows", texts), ("file", str(file)))
    )
    assert repaired.weights_sha256 == expected.weights_sha256


def test_a_model_heals_on_rows(folder, tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))

    def healed(data, name):
        config = ss.HealingConfig(
            data, method=ss.Partial(train_last=1), num_train_epochs=1, per_device_train_batch_size=8
        )
        return ss.heal(str(folder), tmp_path / name, config).history

    of_rows, of_file = healed((chat for chat in CHATS), "rows"), healed(str(file), "file")
    assert of_rows.steps > 0
    assert of_rows.held_out == of_file.held_out
