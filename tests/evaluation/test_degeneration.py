"""Collapse: the measures counted by hand, on texts that are well, loop, or are not there."""

import json
import math
import random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from shortstack.checkpoint import Checkpoint
from shortstack.evaluation.degeneration import PROMPTS, TYPICAL, Collapse, Fluency, check_collapse
from zoo import speaking

texts = st.lists(st.lists(st.integers(0, 6), max_size=30), min_size=1, max_size=4)


@given(texts)
@example([[1, 2, 1, 2, 1, 2], [3, 3]])
def test_the_measures_counted_one_place_at_a_time(texts):
    found = Fluency.of(texts)
    tokens = [token for text in texts for token in text]
    shares = [tokens.count(token) / len(tokens) for token in set(tokens)]
    assert found.distinct_1 == pytest.approx(len(set(tokens)) / len(tokens) if tokens else 0)
    assert found.entropy == pytest.approx(-sum(each * math.log(each) for each in shares))
    assert found.length == len(tokens) / len(texts)
    again, grams, seen_pairs, pairs = 0, 0, [], 0
    for text in texts:
        seen = []
        for place in range(len(text) - 3):
            gram = text[place : place + 4]
            again, grams = again + (gram in seen), grams + 1
            seen.append(gram)
        for place in range(len(text) - 1):
            pairs += 1
            if text[place : place + 2] not in seen_pairs:
                seen_pairs.append(text[place : place + 2])
    assert found.repetition == pytest.approx(again / grams if grams else 1)
    assert found.distinct_2 == pytest.approx(len(seen_pairs) / pairs if pairs else 0)


def of(texts, base=TYPICAL):
    return Collapse(Fluency.of(texts), '"..."', base)


def varied(words, count=8, length=64, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(words) for _ in range(length)] for _ in range(count)]


def test_a_text_as_varied_as_its_base_is_well():
    found = of(varied(300, seed=1), Fluency.of(varied(300)))
    assert (found.fallen, found.warning) == ((), None)
    assert f"has not collapsed: variety and length are at least {min(found.shares.values()):.0%}" in found.summary


@pytest.mark.parametrize(
    ("texts", "fallen"),
    [
        ([[number % 5 for number in range(64)]] * 8, {"repetition", "distinct_1", "distinct_2", "entropy"}),
        (varied(20), {"distinct_1", "entropy"}),
        ([text[:10] for text in varied(300)], {"length"}),
        ([[]] * 8, {"repetition", "distinct_1", "distinct_2", "entropy", "length"}),
    ],
    ids=["loops", "few words", "stops at once", "silence"],
)
def test_loops_and_silence_are_a_collapse(texts, fallen):
    found = of(texts)
    assert set(found.fallen) == fallen
    assert found.to_dict()["collapsed"] is True
    assert found.warning
    assert all(name in found.warning for name in fallen)


def test_a_measure_falls_below_a_quarter_of_the_base():
    base = Fluency(0.2, 0.4, 0.6, 4.0, 64.0)
    just = Fluency(1 - 0.8 * 0.251, 0.4 * 0.251, 0.6 * 0.251, 4.0 + math.log(0.251), 64 * 0.251)
    below = Fluency(1 - 0.8 * 0.249, 0.4 * 0.249, 0.6 * 0.249, 4.0 + math.log(0.249), 64 * 0.249)
    assert Collapse(just, "", base).fallen == ()
    assert len(Collapse(below, "", base).fallen) == 5
    judged = Collapse(below, "").against(Collapse(base, ""))
    assert judged == Collapse(below, "", base, against_base=True)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    checkpoint = Checkpoint.open(speaking(tmp_path_factory.mktemp("speaking") / "model"))
    return checkpoint.model(dtype=torch.float32), checkpoint.tokenizer()


def test_a_model_is_measured_by_what_it_writes_after_the_prompts(speaker, monkeypatch):
    heard = []

    def write(_model, prompts, rooms, **_):
        heard.extend(zip(prompts, rooms, strict=True))
        return [[5 + number] * 64 if number == 3 else list(range(10, 74)) for number in range(len(prompts))]

    monkeypatch.setattr("shortstack.evaluation.degeneration.generate", write)
    found = check_collapse(*speaker)
    assert [(speaker[1].decode(prompt), room) for prompt, room in heard] == [(prompt, 64) for prompt in PROMPTS]
    expected = Fluency.of([[8] * 64 if number == 3 else list(range(10, 74)) for number in range(8)])
    assert found.fluency == expected
    assert json.loads(found.sample).startswith(PROMPTS[3]), "the sample is the worst of them"


def test_a_sample_has_no_control_characters(speaker, monkeypatch):
    ids = speaker[1]("\x1b]0;title\x07\n\u202e").input_ids
    monkeypatch.setattr(
        "shortstack.evaluation.degeneration.generate", lambda _model, prompts, *_, **__: [ids] * len(prompts)
    )
    sample = check_collapse(*speaker).sample
    assert sample.isascii()
    assert sample.isprintable()
