"""Text that a base model writes: from its template, or from BOS; seeded, kept in one file, within its positions."""

import hashlib
import json

import pytest
import torch

import shortstack.decoder.own_text
from shortstack.checkpoint import Checkpoint
from shortstack.data import Text, read_examples
from shortstack.decoder import read_tokens, with_own_text
from shortstack.decoder.generation import generate
from shortstack.decoder.own_text import Writer
from shortstack.errors import DataError, InputError
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(autouse=True)
def few_and_short(monkeypatch):
    monkeypatch.setattr(shortstack.decoder.own_text, "BATCHES", (3, 4))
    for name, length in (("QUESTION_TOKENS", 6), ("ANSWER_TOKENS", 10), ("TEXT_TOKENS", 12)):
        monkeypatch.setattr(shortstack.decoder.own_text, name, length)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.open(speaking(tmp_path_factory.mktemp("speaking") / "model"))


@pytest.fixture
def calls(monkeypatch):
    """The prompts and the seed of each call of generate()."""
    seen = []

    def recorded(model, prompts, rooms, *, seed, **how):
        seen.append((prompts, seed))
        return generate(model, prompts, rooms, seed=seed, **how)

    monkeypatch.setattr(shortstack.decoder.own_text, "generate", recorded)
    return seen


def texts(checkpoint, tokens, compute=None, deadline=None):
    """The texts in the file after a model has written."""
    writer = Writer(checkpoint, compute or Compute())
    writer.write(tokens, deadline)
    return [ids for line in writer.file.read_text().splitlines() for ids in json.loads(line)["texts"]]


def drawn(what, seed=0):
    """The seed of a part of a batch."""
    return int(hashlib.sha256(f"{seed} {what}".encode()).hexdigest()[:8], 16)


def test_a_chat_is_a_question_after_the_template_and_an_answer_after_that(checkpoint):
    tokenizer, model = checkpoint.tokenizer(), checkpoint.model(dtype=torch.float32)
    opening = tokenizer("<s>user: ", add_special_tokens=False).input_ids
    questions = generate(model, [opening] * 3, [6] * 3, seed=drawn("0 questions", 5))
    written = texts(checkpoint, 1, Compute(seed=5))
    assert len(written) == 3
    for text, question in zip(written, questions, strict=True):
        words = tokenizer.decode(question, skip_special_tokens=True).strip()
        prompt = tokenizer(f"<s>user: {words}</s><s>assistant: ", add_special_tokens=False).input_ids
        assert text[: len(prompt)] == prompt
        assert 1 < len(text) - len(prompt) <= 10


@pytest.mark.parametrize("doubled", [True, False])
def test_a_chat_is_written_after_one_bos_and_kept_without(tmp_path, doubled, calls, monkeypatch):
    """The tokenizer puts <s> before text; the template has it, too, or has not."""
    checkpoint = Checkpoint.open(speaking(tmp_path / "model", bos=True))
    tokenizer = checkpoint.tokenizer()
    if not doubled:
        tokenizer.chat_template = tokenizer.chat_template.replace("<s>", "")
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda _self: tokenizer)
    written = texts(checkpoint, 1)
    prefixes = {tuple(prompt[:2]) for prompts, _ in calls for prompt in prompts}
    assert all(first == 1 and second != 1 for first, second in prefixes)
    assert not any(text[0] == 1 for text in written)


def test_a_model_without_a_template_writes_from_bos(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model", chat=False, bos=True))
    expected = generate(checkpoint.model(dtype=torch.float32), [[1]] * 3, [12] * 3, seed=drawn("0 texts"))
    assert texts(checkpoint, 1) == [text for text in expected if len(text) > 1]


def test_texts_are_kept_in_one_file_that_grows(checkpoint, tmp_path, calls):
    first = texts(checkpoint, 1)
    assert texts(checkpoint, 1, Compute(seed=1)) != first
    more = texts(checkpoint, sum(map(len, first)) + 1)
    assert more[:3] == first
    assert len(more) == 7
    assert not {tuple(text) for text in more[3:]} & {tuple(text) for text in first}, "each batch has draws of its own"
    # Seeds that differ above their 32 lower bits alone are one seed to torch's generator on a CPU.
    assert len({seed & 0xFFFFFFFF for _, seed in calls}) == len(calls) == 6, "questions and answers of three batches"
    assert len([*(tmp_path / "cache" / "own-texts").iterdir()]) == 2
    assert texts(checkpoint, sum(map(len, more))) == more
    assert len(calls) == 6


def test_texts_of_a_model_that_is_shared_out_are_others(checkpoint):
    """Its layers lie elsewhere in memory, where products may round otherwise."""
    files = {Writer(checkpoint, Compute(device_map=placed)).file for placed in (None, "auto", "sequential")}
    assert len(files) == 3


def test_nothing_is_longer_than_the_model_has_positions(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model", "gpt2", n_positions=40))
    written = texts(checkpoint, 60)
    assert 1 < max(map(len, written)) <= 40


def test_a_model_that_writes_nothing_is_refused(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model", chat=False))
    monkeypatch.setattr(shortstack.decoder.own_text, "generate", lambda _model, prompts, *_, **__: [[2]] * len(prompts))
    with pytest.raises(DataError):
        with_own_text(Text("self", 2, 16), checkpoint)


def test_mix_of_a_model_that_cannot_write_is_read_without_self(checkpoint, monkeypatch):
    text, read = Text("mix", 2, 64), ["pydoc", "copying", "drills"]
    assert [kind.source for kind in read_tokens(checkpoint, text).kinds] == ["pydoc", "self", "copying", "drills"]
    with pytest.warns(UserWarning, match="read layer by layer"):
        assert [kind.source for kind in read_tokens(checkpoint, text, compute=Compute(stream=True)).kinds] == read
    tokenizer = checkpoint.tokenizer()
    tokenizer.chat_template = "no place for words"
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda _self: tokenizer)
    with pytest.warns(UserWarning, match="a place for a question"):
        assert [kind.source for kind in read_tokens(checkpoint, text, compute=Compute(seed=1)).kinds] == read
    with pytest.raises(DataError):
        read_tokens(checkpoint, Text("self", 2, 64), compute=Compute(seed=1))


def test_windows_and_samples_are_of_one_text_after_the_other(checkpoint):
    text = with_own_text(Text({"self": 1, "copying": 0.5}, 2, 60), checkpoint)
    own, _ = text.tokens(checkpoint.tokenizer()).parts
    stream = [token for written in texts(checkpoint, 120) for token in written]
    assert own[0].source == "self"
    tokens = text.tokens(checkpoint.tokenizer())
    assert tokens.ids[own[1]].flatten().tolist() == stream[:120]
    assert tokens.counted[own[1]].all()
    learnt = read_examples(Text([text.sources[0].name], 2, 60), checkpoint.tokenizer())
    assert sorted(example.ids for example in learnt) == sorted((tuple(stream[:60]), tuple(stream[60:120])))
    assert all(example.made and all(example.learn) for example in learnt)


def test_nothing_is_written_if_another_source_is_missing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(shortstack.decoder.own_text, "generate", None)
    with pytest.raises(DataError, match=r"missing\.txt"):
        read_tokens(checkpoint, Text(["self", str(tmp_path / "missing.txt")], 2, 24))


def test_own_text_of_a_model_that_does_not_fit_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _: 1000)
    with pytest.raises(InputError):
        read_tokens(checkpoint, Text("self", 2, 16))


def test_a_deadline_ends_the_writing_and_what_is_kept_takes_no_time(checkpoint, monkeypatch):
    at = [0.0]

    def timed(*args, **options):
        at[0] += 10
        return generate(*args, **options)

    monkeypatch.setattr(shortstack.decoder.own_text, "generate", timed)
    clock = Clock(100, now=lambda: at[0])  # a batch has questions and answers: 20 seconds
    some = texts(checkpoint, 10_000, deadline=clock.until(0.5))
    assert (at, len(some)) == ([40], 3 + 4)
    for share in (0.3, 0.55):  # over already; too short for a batch that takes as long as those that are kept
        assert texts(checkpoint, 10_000, deadline=clock.until(share)) == some
    assert at == [40]


def test_after_a_deadline_a_text_has_the_windows_that_were_written(checkpoint):
    """One batch is written after any deadline."""
    limited = with_own_text(Text(["self", "copying"], 50, 16), checkpoint, deadline=Clock(1, used=2))
    assert limited.samples == sum(map(len, texts(checkpoint, 1))) // 16
    assert len(limited.tokens(checkpoint.tokenizer()).ids) == 2 * limited.samples
    assert with_own_text(Text("copying"), checkpoint, deadline=Clock(1, used=2)) == Text("copying")
