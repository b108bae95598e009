"""Small generation tasks made by a seeded program: pruning breaks what a model writes before it breaks what it picks."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING

import numpy as np

from shortstack.data.in_context import MONTHS
from shortstack.data.tokens import bos_ids, encode, encode_after
from shortstack.decoder import Decoder
from shortstack.decoder.generation import end_tokens, generate, longest
from shortstack.decoder.likelihoods import Request, greedy_endings
from shortstack.evaluation.paired import mean_of
from shortstack.evaluation.results import TaskResult
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SHOTS = 4  # examples before each question: a base model knows no instructions
MOST = 100  # items of a probe: one-digit sums and differences are few
WRITTEN = "json"  # of which several answers are right, so that the model's own must be written
SPARE = 8  # tokens of room beyond those of the answer: other spellings are longer
REPETITION, GRAM, NEW_TOKENS = "repetition", 4, 64  # free writing: the share of 4-grams that a text has repeated
BEGINNINGS = (
    "The city lies on a river, and",
    "In the morning the two brothers",
    "The most important part of an engine is",
    "When water is heated, it",
    "A good teacher knows that",
    "The history of bread begins",
    "To plan a small garden,",
    "Yesterday the government said that",
)
CLOSING = {"(": ")", "[": "]", "{": "}"}
WORDS = (
    *("apple", "river", "stone", "cloud", "bread", "chair", "house", "light", "music", "green", "tiger", "water"),
    *("paper", "table", "horse", "plant", "glass", "sugar", "night", "ocean", "smile", "train", "wheel", "north"),
)
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Dublin")


@dataclass(frozen=True)
class Item:
    """Prompt of a probe, its right answer, and the chance that a random answer of its form is right.

    The prompt begins with solved examples of its kind. Free writing has no answer.
    """

    prompt: str
    answer: str
    chance: float
    probe: str = ""

    @property
    def document(self) -> str:
        """Digest of the prompt, so that results of different items are never paired."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]

    def room(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Count the tokens that may be written: those of the answer, and some more."""
        return len(encode_after(tokenizer, f" {self.answer}")) + SPARE if self.answer else NEW_TOKENS


def probes(seed: int = 0, n: int = MOST) -> tuple[Item, ...]:
    """Make n different items of each probe, at most MOST; the first of them are those of a smaller n.

    >>> print(probes(seed=0, n=1)[1].prompt[-33:])
    Numbers: 179, 180, 181, 182
    Next:
    """
    free = [Item(beginning, "", 0.0, REPETITION) for beginning in BEGINNINGS[:n]]
    return tuple([item for name in PROBES for item in _items(name, seed, n)] + free)


def run_probes(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    progress: Progress = silent,
) -> dict[str, TaskResult]:
    """Return each probe's result: greedy answers, up to the end of their line. A prompt starts with BOS as all text does.

    Where an answer is exact, a greedy one is right exactly if each of its tokens is the likeliest after those before it, and
    the next ends the line: one forward pass, nothing is written. JSON and free texts are written.
    """
    written = [item for item in items if item.probe == WRITTEN]
    free = [item for item in items if item.probe == REPETITION]
    exact = [item for item in items if item.probe not in (WRITTEN, REPETITION)]
    outcomes: dict[Item, float] = {}
    outcomes |= zip(exact, _exact_answers(decoder, tokenizer, exact, progress), strict=True)
    texts = _written(decoder.model, tokenizer, written, progress)
    lines = (tokenizer.decode(tokens, skip_special_tokens=True).partition("\n")[0].strip() for tokens in texts)
    outcomes |= {item: has_keys(line, item.answer) for item, line in zip(written, lines, strict=True)}
    outcomes |= zip(free, map(repeated, _written(decoder.model, tokenizer, free, progress)), strict=True)
    bos = bool(bos_ids(tokenizer))
    return {name: _result(name, outcomes, bos, decoder.dtype) for name in dict.fromkeys(item.probe for item in items)}


def repeated(tokens: Sequence[int]) -> float:
    """Return the share of 4-grams that the text had before; 1 where it is too short to have any.

    >>> repeated([1, 2, 3, 1, 2, 3, 1, 2, 3]), repeated([1, 2, 3, 4, 5]), repeated([])
    (0.5, 0.0, 1.0)
    """
    grams = list(zip(*(tokens[start:] for start in range(GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 1.0


def _exact_answers(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], progress: Progress
) -> list[bool]:
    requests = [_request(tokenizer, item) for item in items]
    greedy = greedy_endings(decoder, requests, stage="answering probes", progress=progress)
    ends = end_tokens(decoder.model)

    def right(request: Request, likeliest: Sequence[int]) -> bool:
        *answer, last = likeliest
        return (*answer,) == request.ending[:-1] and (last in ends or _ends_line(tokenizer, answer, last))

    return [right(*answered) for answered in zip(requests, greedy, strict=True)]


def _request(tokenizer: PreTrainedTokenizerBase, item: Item) -> Request:
    """Encode a prompt and its answer; the last token only asks what comes behind the answer."""
    prompt = _prompt(tokenizer, item)
    return Request((*prompt, *encode_after(tokenizer, f" {item.answer}"), 0), len(prompt))


def _prompt(tokenizer: PreTrainedTokenizerBase, item: Item) -> list[int]:
    return [*bos_ids(tokenizer), *encode(tokenizer, item.prompt)]


def _ends_line(tokenizer: PreTrainedTokenizerBase, answer: Sequence[int], token: int) -> bool:
    """Say whether nothing but space is left of the line when this token follows the answer."""
    before, after = tokenizer.decode(answer), tokenizer.decode([*answer, token])
    rest, newline, _ = after.removeprefix(before).partition("\n")
    return bool(newline) and not rest.strip()


def _written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], progress: Progress
) -> list[list[int]]:
    return generate(model, *_prompts(tokenizer, items), stage="answering probes", progress=progress)


def probe_tokens(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> int:
    """Count the tokens of the longest prompt with its answer."""
    return longest(*_prompts(tokenizer, items))


def _prompts(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> tuple[list[list[int]], list[int]]:
    """Encode the prompts, and count the tokens that may be written after each."""
    return [_prompt(tokenizer, item) for item in items], [item.room(tokenizer) for item in items]


def has_keys(line: str, answer: str) -> bool:
    """Say whether a line is a JSON object with the answer's keys."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.keys() == json.loads(answer).keys()


def _result(name: str, outcomes: Mapping[Item, float], bos: bool, dtype: str) -> TaskResult:
    own = [item for item in outcomes if item.probe == name]
    free, values = name == REPETITION, np.array([outcomes[item] for item in own], dtype=float)
    return TaskResult(
        metric="repeated 4-grams" if free else "acc",
        value=mean_of(values).value,
        stderr=mean_of(values).stderr,
        n=len(own),
        version="1",
        shots=0 if free else SHOTS,
        bos=bos,
        dtype=dtype,
        chance=None if free else sum(item.chance for item in own) / len(own),
        higher_is_better=not free,
        documents=tuple(item.document for item in own),
        outcomes=tuple((-values if free else values).tolist()),
    )


def _items(name: str, seed: int, n: int) -> list[Item]:
    rng = random.Random(f"{seed} {name}")  # of its own: a new probe does not change the others
    items: dict[str, Item] = {}
    while len(items) < n:
        question = PROBES[name](rng)
        if question.prompt not in items:
            items[question.prompt] = _after_examples(name, question, rng)
    return list(items.values())


def _after_examples(name: str, question: Item, rng: random.Random) -> Item:
    shots: dict[str, str] = {}
    while len(shots) < SHOTS:
        example = PROBES[name](rng)
        if example.prompt != question.prompt:
            shots[example.prompt] = f"{example.prompt} {example.answer}\n\n"
    return replace(question, prompt="".join(shots.values()) + question.prompt, probe=name)


def _copying(rng: random.Random) -> Item:
    words = rng.sample(WORDS, rng.randint(3, 5))
    return Item(f"Input: {' '.join(words)}\nOutput:", " ".join(words), len(WORDS) ** -len(words))


def _counting(rng: random.Random) -> Item:
    first = rng.randint(1, 195)
    shown = ", ".join(str(number) for number in range(first, first + 4))
    return Item(f"Numbers: {shown}\nNext:", str(first + 4), 1 / 195)


def _brackets(rng: random.Random) -> Item:
    opened = rng.choices(tuple(CLOSING), k=rng.randint(2, 5))
    closed = " ".join(CLOSING[bracket] for bracket in reversed(opened))
    return Item(f"Open: {' '.join(opened)}\nClose:", closed, len(CLOSING) ** -len(opened))


def _arithmetic(digits: int) -> Callable[[random.Random], Item]:
    """Ask for sums, and differences that are not negative, of numbers of so many digits."""
    least, most = 10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1

    def question(rng: random.Random) -> Item:
        a, b = rng.randint(least, most), rng.randint(least, most)
        chance = 1 / (2 * most + 1)
        if a < b or rng.random() < 0.5:
            return Item(f"{a} + {b} =", str(a + b), chance)
        return Item(f"{a} - {b} =", str(a - b), chance)

    return question


def _json(rng: random.Random) -> Item:
    record = {"name": rng.choice(NAMES), "age": rng.randint(10, 90), "city": rng.choice(CITIES)}
    text = "{name} is {age} years old and lives in {city}.".format(**record)
    return Item(f"Text: {text}\nJSON:", json.dumps(record), 0.0)


def _swapping(rng: random.Random) -> Item:
    first, second = rng.sample(WORDS, 2)
    return Item(f"Pair: {first} {second}\nSwapped:", f"{second} {first}", len(WORDS) ** -2)


def _initials(rng: random.Random) -> Item:
    names = rng.sample(NAMES, 3)
    return Item(f"Name: {' '.join(names)}\nInitials:", "".join(name[0] for name in names), len(NAMES) ** -3)


def _missing(rng: random.Random) -> Item:
    first = rng.randint(1, 195)
    return Item(f"Numbers: {first}, _, {first + 2}\nMissing:", str(first + 1), 1 / 195)


def _dates(rng: random.Random) -> Item:
    day = date(rng.randint(1990, 2029), rng.randint(1, 12), rng.randint(1, 28))
    named = f"{day.day} {MONTHS[day.month - 1]} {day.year}"
    return Item(f"Date: {named}\nISO:", day.isoformat(), 1 / (40 * 12 * 28))


def _extracting(rng: random.Random) -> Item:
    name, town, number = rng.choice(NAMES), rng.choice(CITIES).lower(), rng.randint(10, 99)
    address = f"{name.lower()}{number}@{town}.org"
    chance = 1 / (len(NAMES) * len(CITIES) * 90)
    return Item(f"Line: {name} <{address}> wrote today\nAddress:", address, chance)


PROBES: Mapping[str, Callable[[random.Random], Item]] = {
    "copying": _copying,
    "counting": _counting,
    "brackets": _brackets,
    "arithmetic-1": _arithmetic(1),
    "arithmetic-2": _arithmetic(2),
    "arithmetic-3": _arithmetic(3),
    "json": _json,
    "swapping": _swapping,
    "initials": _initials,
    "missing": _missing,
    "dates": _dates,
    "extracting": _extracting,
}
