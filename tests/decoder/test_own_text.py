"""Text that a model writes itself: from its template, or from BOS; seeded, kept, and as far as it has positions."""

import hashlib
import json

import pytest
import torch

import shortstack.decoder.own_text
from shortstack.checkpoint import Checkpoint
from shortstack.data import CalibrationText
from shortstack.decoder import OwnText, calibration_tokens, text_in_time
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


def drawn(what, seed=0):
    """The seed of a part of a batch."""
    return int(hashlib.sha256(f"{seed} {what}".encode()).hexdigest()[:8], 16)


def test_a_chat_is_a_question_after_the_template_and_an_answer_after_that(checkpoint):
    tokenizer, model = checkpoint.tokenizer(), checkpoint.model(dtype=torch.float32)
    opening = tokenizer("<s>user: ", add_special_tokens=False).input_ids
    questions = generate(model, [opening] * 3, [6] * 3, seed=drawn("0 questions", 5))
    texts = OwnText(checkpoint, Compute(seed=5)).texts(2)
    assert len(texts) == 3
    for text, question in zip(texts, questions, strict=True):
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
    texts = OwnText(checkpoint).texts(2)
    prefixes = {tuple(prompt[:2]) for prompts, _ in calls for prompt in prompts}
    assert all(first == 1 and second != 1 for first, second in prefixes)
    assert not any(text[0] == 1 for text in texts)


def test_a_base_model_writes_from_bos(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model", chat=False, bos=True))
    expected = generate(checkpoint.model(dtype=torch.float32), [[1]] * 3, [12] * 3, seed=drawn("0 texts"))
    assert OwnText(checkpoint).texts(3) == [text for text in expected if len(text) > 1]


def test_texts_are_kept_and_more_of_them_begin_with_the_same(checkpoint, tmp_path, calls):
    first = OwnText(checkpoint).texts(3)
    assert OwnText(checkpoint, Compute(seed=1)).texts(3) != first
    more = OwnText(checkpoint).texts(5)
    assert more[:3] == first
    assert len(more) == 7
    assert not {tuple(text) for text in more[3:]} & {tuple(text) for text in first}, "each batch has draws of its own"
    # Seeds that differ above their 32 lower bits alone are one seed to torch's generator on a CPU.
    assert len({seed & 0xFFFFFFFF for _, seed in calls}) == len(calls) == 6, "questions and answers of three batches"
    kept = [path.name for path in (tmp_path / "cache" / "own-texts").rglob("*.json")]
    assert sorted(kept) == ["00000.json", "00000.json", "00001.json"]
    assert OwnText(checkpoint).texts(7) == more
    assert len(calls) == 6


def test_texts_of_a_model_that_is_shared_out_are_others(checkpoint):
    """Its layers lie elsewhere in memory, where products may round otherwise."""
    keys = {Writer(checkpoint, Compute(device_map=placed)).key for placed in (None, "auto", "sequential")}
    assert len(keys) == 3


def test_the_state_after_a_kill_is_what_was_written_whole(checkpoint, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shortstack.decoder.own_text, "generate", killed)
        with pytest.raises(KeyboardInterrupt):
            OwnText(checkpoint).texts(3)
    assert list((tmp_path / "cache" / "own-texts").rglob("*.json")) == []
    assert len(OwnText(checkpoint).texts(3)) == 3


def test_nothing_is_longer_than_the_model_has_positions(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model", "gpt2", n_positions=40))
    texts = OwnText(checkpoint).texts(7)
    assert texts
    assert max(map(len, texts)) <= 40


def test_a_model_that_writes_nothing_is_said_to(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model", chat=False))
    kept = tmp_path / "cache" / "own-texts" / Writer(checkpoint, Compute()).key
    kept.mkdir(parents=True)
    for number in range(6):
        texts = [] if number else [[5, 6]]
        (kept / f"{number:05}.json").write_text(json.dumps({"texts": texts, "seconds": 1}))
    with pytest.raises(DataError, match="a model that writes something"):
        OwnText(checkpoint).texts(2)


def test_windows_of_mix_are_of_four_kinds_and_a_streamed_model_reads_the_rest(checkpoint, monkeypatch):
    text = CalibrationText(samples=2, length=64)
    sources = [kind.source for kind in calibration_tokens(checkpoint, text).kinds]
    assert sources == ["pydoc", "self", "copying", "drills"]
    for compute, streams in ((Compute(stream=True), False), (Compute(), True)):
        monkeypatch.setattr(shortstack.decoder.own_text, "must_stream", lambda *_, streams=streams: streams)
        with pytest.warns(UserWarning, match="its weights are read layer by layer"):
            tokens = calibration_tokens(checkpoint, text, compute=compute)
        assert [kind.source for kind in tokens.kinds] == ["pydoc", "copying", "drills"]


def test_where_nothing_opens_a_text_mix_reads_the_rest_and_self_is_refused(checkpoint, monkeypatch):
    tokenizer = checkpoint.tokenizer()
    tokenizer.chat_template = "no place for words"
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda _self: tokenizer)
    with pytest.warns(UserWarning, match="a chat template with a place for a question"):
        tokens = calibration_tokens(checkpoint, CalibrationText(samples=2, length=64))
    assert [kind.source for kind in tokens.kinds] == ["pydoc", "copying", "drills"]
    with pytest.raises(DataError, match="a place for a question"):
        calibration_tokens(checkpoint, CalibrationText("self", samples=2, length=64))


def test_windows_longer_than_a_text_are_of_several(checkpoint):
    tokens = calibration_tokens(checkpoint, CalibrationText("self", samples=2, length=60))
    stream = [token for text in OwnText(checkpoint).texts(7) for token in text]
    assert tokens.ids.flatten().tolist() == stream[:120]


def test_a_missing_file_is_said_before_anything_is_written(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(shortstack.decoder.own_text, "generate", None)
    with pytest.raises(DataError, match=r"missing\.txt"):
        calibration_tokens(checkpoint, CalibrationText(f"self,{tmp_path / 'missing.txt'}", samples=2, length=24))


def test_own_text_of_a_model_that_does_not_fit_is_refused(checkpoint, monkeypatch):
    import shortstack.machine.memory

    monkeypatch.setattr(shortstack.machine.memory, "available_memory", lambda _: 1000)
    with pytest.raises(InputError, match="of memory"):
        calibration_tokens(checkpoint, CalibrationText("self", samples=2, length=16))


def test_a_deadline_leaves_texts_unwritten_and_the_number_gives_the_same_again(checkpoint, monkeypatch):
    at = [0.0]

    def timed(*args, **options):
        at[0] += 10
        return generate(*args, **options)

    monkeypatch.setattr(shortstack.decoder.own_text, "generate", timed)
    clock = Clock(100, now=lambda: at[0])  # a batch has questions and answers: 20 seconds
    some = OwnText(checkpoint, deadline=clock.until(0.5)).texts(100)
    assert at == [40]
    assert len(some) == 3 + 4
    for share in (0.3, 0.55):  # over already; too short for a batch that takes as long as those that are kept
        more = OwnText(checkpoint, deadline=clock.until(share)).texts(100)
        assert more == some, "what is kept takes no time"
    assert at == [40]
    monkeypatch.setattr(shortstack.decoder.own_text, "generate", None)
    assert OwnText(checkpoint).texts(7) == some


def test_a_calibration_text_in_time_has_the_samples_that_were_written(checkpoint, monkeypatch):
    """One batch is written after any deadline."""
    text = CalibrationText("self,copying", samples=50, length=16)
    limited = text_in_time(checkpoint, text, Clock(1, used=2))
    written = sum(map(len, OwnText(checkpoint).texts(3)))
    assert limited == CalibrationText("self,copying", samples=written // 16, length=16)
    monkeypatch.setattr(shortstack.decoder.own_text, "generate", None)
    assert len(calibration_tokens(checkpoint, limited).ids) == 2 * limited.samples
    assert text_in_time(checkpoint, CalibrationText("copying"), Clock(1, used=2)) == CalibrationText("copying")
