"""Probes: every answer solved again from its prompt alone, and the results against one prompt at a time."""

import json
import re
from collections import Counter
from datetime import datetime

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.evaluation import probes as room
from shortstack.evaluation.probes import BEGINNINGS, MOST, PROBES, has_keys, probes, repeated, run_probes
from zoo import speaking

ITEMS = tuple(item for item in probes(seed=3) if item.answer)


def numbers(question):
    return [int(number) for number in re.findall(r"\d+", question)]


def closed(question):
    pairs = {"(": ")", "[": "]", "{": "}"}
    return " ".join(pairs[bracket] for bracket in reversed(re.findall(r"[(\[{]", question)))


def record(question):
    name, age, city = re.fullmatch(r"Text: (\w+) is (\d+) years old and lives in (\w+)\.\nJSON:", question).groups()
    return json.dumps({"name": name, "age": int(age), "city": city})


SOLVERS = {  # the answer, worked out from the text of the question
    "copying": lambda question: re.fullmatch(r"Input: (.+)\nOutput:", question)[1],
    "counting": lambda question: str(numbers(question)[-1] + 1),
    "brackets": closed,
    "json": record,
    "swapping": lambda question: re.sub(r"Pair: (\w+) (\w+)\nSwapped:", r"\2 \1", question),
    "initials": lambda question: "".join(re.findall(r"[A-Z](?=[a-z]+[ \n])", question.removeprefix("Name: "))),
    "missing": lambda question: str(sum(numbers(question)) // 2),
    "dates": lambda question: datetime.strptime(question, "Date: %d %B %Y\nISO:").strftime("%Y-%m-%d"),
    "extracting": lambda question: re.search(r"<(.+@.+)>", question)[1],
}


def solved(probe, question):
    if probe in SOLVERS:
        return SOLVERS[probe](question)
    a, sign, b = re.fullmatch(r"(\d+) ([+-]) (\d+) =", question).groups()
    assert {len(a), len(b)} == {int(probe[-1])}
    return str(int(a) + int(b) if sign == "+" else int(a) - int(b))


@pytest.mark.parametrize("probe", PROBES)
def test_answers_are_right_and_so_are_those_of_the_examples(probe):
    for item in (item for item in ITEMS if item.probe == probe):
        *examples, question = item.prompt.split("\n\n")
        assert solved(probe, question) == item.answer
        assert len(examples) == 4
        for example in examples:
            answer = example.rpartition(question.split()[-1])[2]  # "Output:", or the sign =
            asked = example.removesuffix(answer)
            assert answer == f" {solved(probe, asked)}"
            assert asked != question, "the answer is in the prompt"


def test_items_are_different_the_same_each_time_and_begin_alike():
    assert Counter(item.probe for item in ITEMS) == dict.fromkeys(PROBES, MOST)
    assert len({(item.probe, item.prompt.rpartition("\n\n")[2]) for item in ITEMS}) == len(ITEMS)
    assert len({item.document for item in ITEMS}) == len(ITEMS)
    assert probes(seed=3)[: len(ITEMS)] == ITEMS
    assert not {*probes(seed=4)} & {*ITEMS}
    few = probes(seed=3, n=5)
    for name in PROBES:
        assert [item for item in few if item.probe == name] == [item for item in ITEMS if item.probe == name][:5]


def test_chance_is_one_over_the_answers_of_that_form():
    for item in ITEMS:
        if item.probe == "brackets":
            assert item.chance == pytest.approx(1 / 3 ** len(item.answer.split()))
    chance = {item.probe: item.chance for item in ITEMS}
    assert (chance["arithmetic-1"], chance["arithmetic-2"]) == (1 / 19, 1 / 199)
    sums = {item.answer for item in ITEMS if item.probe == "arithmetic-1"}
    assert sums <= {str(number) for number in range(19)}


@pytest.mark.parametrize(
    ("written", "right"),
    [
        (' {"age": 3, "name": "X", "city": null}\n\nText:', True),
        ('{"name":"X","age":"3","city":"Y"}', True),
        ('{"name": "X", "age": 3}', False),
        ('{"name": "X", "age": 3, "city": "Y", "more": 1}', False),
        ('{"name": "X", "age": 3, "city": "Y"', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_json_is_right_when_it_is_an_object_with_the_keys_asked_for(written, right):
    item = next(item for item in ITEMS if item.probe == "json")
    assert has_keys(written.partition("\n")[0].strip(), item.answer) is right


@pytest.mark.parametrize(
    ("behind", "right"), [("\n", True), ("\n\n", True), (" \n", True), (" a", False), ("0", False), (".\n", False)]
)
def test_an_answer_is_right_only_where_its_line_ends_behind_it(behind, right):
    class Characters:
        def decode(self, ids):
            return "".join(ids)

    assert room._ends_line(Characters(), [*"183"], behind) is right


@given(st.lists(st.integers(0, 3), max_size=40))
def test_repeated_counts_grams_that_came_before(tokens):
    grams = [tokens[place : place + 4] for place in range(len(tokens) - 3)]
    again = [gram in grams[:place] for place, gram in enumerate(grams)]
    assert repeated(tokens) == pytest.approx(sum(again) / len(again) if again else 1)


def test_repetition_is_of_what_the_model_writes_freely(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model"))
    decoder, tokenizer = Decoder.load(checkpoint, dtype=torch.float32), checkpoint.tokenizer()
    texts = [[5, 6] * 32, *[[*range(place, place + 64)] for place in range(7)]]
    asked = []

    def write(_model, prompts, rooms, **_):
        asked.extend(zip(prompts, rooms, strict=True))
        return texts[: len(prompts)]

    monkeypatch.setattr("shortstack.evaluation.probes.generate", write)
    free = [item for item in probes() if item.probe == "repetition"]
    found = run_probes(decoder, tokenizer, free)["repetition"]
    assert [(tokenizer.decode(prompt), room) for prompt, room in asked] == [(text, 64) for text in BEGINNINGS]
    assert (found.value, found.n, found.higher_is_better) == (pytest.approx(59 / 61 / 8), 8, False)
    assert found.outcomes == pytest.approx([-59 / 61, *[0.0] * 7])
    assert found.stderr == pytest.approx(stats.sem([59 / 61, *[0.0] * 7]))


@torch.no_grad()
def test_a_real_model_answers_in_one_pass_what_it_writes_token_by_token():
    checkpoint = Checkpoint.open("demo")
    decoder, tokenizer = Decoder.load(checkpoint, dtype=torch.float32), checkpoint.tokenizer()
    items = [item for item in probes(n=2) if item.probe in ("counting", "brackets")]
    items += [item for item in probes(n=1) if item.probe == "json"]
    written = {}
    for item in items:
        ids = tokenizer(item.prompt, return_tensors="pt").input_ids
        answer = decoder.model.generate(ids, do_sample=False, max_new_tokens=40, stop_strings="\n", tokenizer=tokenizer)
        written_text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        line = written_text.partition("\n")[0].strip()
        right = has_keys(line, item.answer) if item.probe == "json" else line == item.answer
        written.setdefault(item.probe, []).append(right)
    assert {right for answers in written.values() for right in answers} == {True, False}
    for name, probed in run_probes(decoder, tokenizer, items).items():
        own = [item for item in items if item.probe == name]
        assert list(probed.outcomes) == written[name]
        assert probed.documents == tuple(item.document for item in own)
        assert probed.chance == pytest.approx(sum(item.chance for item in own) / len(own))


def test_prompts_start_with_bos_where_text_does(tmp_path):
    tokenizer = Checkpoint.open(speaking(tmp_path / "model", bos=True)).tokenizer()
    item = probes(n=1)[1]
    prompt = [1, *tokenizer(item.prompt, add_special_tokens=False).input_ids]
    assert list(room._request(tokenizer, item).context) == prompt
    assert room._prompts(tokenizer, [item])[0] == [prompt]
