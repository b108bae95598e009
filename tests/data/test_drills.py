"""Drills: every answer solved again from its question, and no template that `evaluate --probes` has."""

import itertools
import json
import operator
import random
import re
from datetime import date

import pytest

from shortstack.data.in_context import FAMILIES, drills
from shortstack.evaluation.probes import PROBES

CLOSING = str.maketrans("([{<", ")]}>")
NAMED = (
    [date(2024, 1, day).strftime("%A") for day in range(1, 8)],
    [date(2024, m, 1).strftime("%B") for m in range(1, 13)],
)


def numbers(question):
    return [int(each) for each in re.findall(r"\d+", question)]


def series(question):
    *_, before, last = shown = [int(each) for each in question.split()]
    assert len({after - one for one, after in itertools.pairwise(shown)}) == 1
    return str(2 * last - before)


def following(question):
    (names,) = (names for names in NAMED if question in names)
    return [*names, names[0]][names.index(question) + 1]


def worked_out(question):
    a, word, b = question.split()
    return str({"plus": operator.add, "less": operator.sub, "times": operator.mul}[word](int(a), int(b)))


def owner(question):
    thing = re.search(r"Who took the (\w+)\?", question).group(1)
    return re.search(rf"(\w+) took the {thing}\.", question).group(1)


def told(question):
    (a, b), thing = numbers(question), question.split()[3]
    return f"{a + b if 'finds' in question else a - b} {thing}"


def record(question):
    pairs = dict(each.split("=") for each in question.split(","))
    return {key: int(value) if value.isdigit() else value for key, value in pairs.items()}


def looked_up(question):
    listed, key = question.split("; ")
    return dict(each.split() for each in listed.split(", "))[key]


def picked(question):
    name, _, listed = question.partition(" of ")
    return listed.split(", ")[{"first": 0, "second": 1, "last": -1}[name]]


SOLVED = {
    "sequence": series,
    "cyclic": following,
    "letters": lambda question: chr(ord(question[-1]) + 1),
    "sum": lambda question: str(sum(numbers(question))),
    "difference": lambda question: str(numbers(question)[1] - numbers(question)[0]),
    "operator": worked_out,
    "sorted-numbers": lambda question: " ".join(map(str, sorted(numbers(question)))),
    "sorted-words": lambda question: " ".join(sorted(question.split())),
    "larger": lambda question: str(max(numbers(question))),
    "smaller": lambda question: str(min(numbers(question))),
    "lookup": looked_up,
    "owner": owner,
    "reversed": lambda question: " ".join(question.split()[::-1]),
    "echoed": str,
    "twice": lambda question: f"{question} {question}",
    "place": picked,
    "brackets": lambda question: question[::-1].translate(CLOSING),
    "tags": lambda question: "".join(f"</{tag}>" for tag in re.findall(r"<(\w+)>", question)[::-1]),
    "json-of-pairs": lambda question: json.dumps(record(question)),
    "json-value": lambda question: str(json.loads(question.rpartition(" ")[0])[question.rpartition(" ")[2]]),
    "csv": lambda question: ",".join(question.split(" and ")),
    "upper": str.upper,
    "title": str.title,
    "problem": told,
    "spelled": lambda question: "-".join(question),
    "joined": lambda question: question.replace(" ", ""),
    "counted": lambda question: str(len(question.split())),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_what_the_question_asks(name):
    rng = random.Random(1)
    for number in range(100):
        question, answer = FAMILIES[name].make(rng, 2 + number % 4)
        assert answer == SOLVED[name](question), question


def test_no_template_is_that_of_a_probe():
    """Nor one that differs in what is asked alone: the words around a question are others."""
    rng = random.Random(3)
    asked = [PROBES[name](rng).prompt for name in PROBES for _ in range(20)]
    around = {word for prompt in asked for word in re.findall(r"\b[A-Z]\w*:", prompt)}
    assert {"Input:", "Output:", "Next:", "Close:", "JSON:"} <= around
    shown = ["".join(text for text, _ in drills(random.Random(seed))) for seed in range(600)]
    for text in shown:
        assert not around & set(re.findall(r"\b[A-Z]\w*:", text)), text
        assert not re.search(r"\d+ [+-] \d+ =", text), text


def test_answers_count_from_the_third_on():
    for seed in range(50):
        passages = drills(random.Random(seed))
        assert [counts for _, counts in passages[::2]] == [False] * (len(passages) // 2)
        assert [counts for _, counts in passages[1::2]] == [number > 1 for number in range(len(passages) // 2)]
        assert all(text.startswith(" ") and text.endswith("\n") for text, _ in passages[1::2])


def test_a_text_has_one_template():
    passages = drills(random.Random(4))
    parts = [template.split("{q}") for family in FAMILIES.values() for template in family.templates]
    questions = [text for text, _ in passages[::2]]
    fitting = [each for each in parts if all(q.startswith(each[0]) and q.endswith(each[1]) for q in questions)]
    assert ["Sort the words ", " =>"] in fitting
