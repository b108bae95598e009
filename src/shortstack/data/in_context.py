"""The texts that come along: reference topics of Python's standard library, and what a seeded program makes.

In the latter only what comes before explains what follows: a model must do what it was just shown. Prose hardly asks for
it, so a model that lost layers may still predict prose and no longer copy, look up or follow examples.
Half of such a text is noise; the passages that the rest determines are marked, and they alone count. No template is one of
`evaluate --probes`.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

HELD_OUT_SHARE = 0.2  # of the reference topics
SYMBOLS = "{}[]()<>;:=+-*/#"
MOST = 48  # words of a text
MOST_NUMBER = 99  # behind a symbol, so that a sequence of them does not repeat itself
SHOWN = 2  # examples that do not count: before them nobody knows what is asked
SHORTEST = 3  # questions of a text
NAMES = ("Ada", "Boris", "Carla", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Liam")
THINGS = ("apples", "books", "coins", "cups", "keys", "maps", "pens", "rings", "shells", "stamps")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
TAGS = ("b", "i", "p", "div", "span", "li", "td", "em")
PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}

Passages = Sequence[tuple[str, bool]]  # text, and whether what stands before it says what it is
Make = Callable[[random.Random, int], tuple[str, str]]  # of a size from 2 to 4: a question and its answer


def pydoc(held_out: bool) -> str:
    """Read the standard library's reference topics, each paragraph once.

    Topics quote each other, and would leak otherwise.
    """
    from pydoc_data import topics

    texts = "\n\n".join(topics.topics[name].strip() for name in sorted(topics.topics))
    paragraphs = list(dict.fromkeys(texts.split("\n\n")))
    ends = list(itertools.accumulate(map(len, paragraphs)))
    first = bisect.bisect_left(ends, (1 - HELD_OUT_SHARE) * ends[-1]) + 1
    return "\n\n".join(paragraphs[first:] if held_out else paragraphs[:first])


@functools.cache
def words() -> tuple[str, ...]:
    """List the words of the text that comes along, from the part that calibrates."""
    return tuple(sorted(set(re.findall(r"\b[a-z]{3,9}\b", pydoc(False)))))


def copying(rng: random.Random, most: int = MOST) -> Passages:
    """List random words (in every third text symbols and numbers), then repeat the list.

    >>> first, again = copying(random.Random(1))
    >>> first[0] == again[0] + "\\n", first[1], again[1]
    (True, False, True)
    """
    count = rng.randint(-(-most // 6), most)
    if rng.random() < 1 / 3:
        units = [f"{rng.choice(SYMBOLS)}{rng.randint(0, MOST_NUMBER)}" for _ in range(count)]
    else:
        units = rng.sample(words(), count)
    text = " ".join(units)
    return [(f"{text}\n", False), (text, True)]


def recall(rng: random.Random, most: int = MOST) -> Passages:
    """List words with numbers, then some of the words again: the number that belongs to each is determined.

    >>> [determined for _, determined in recall(random.Random(1))][:3]
    [False, False, True]
    """
    least = -(-most // 12)
    keys = rng.sample(words(), max(2, rng.randint(least, max(least, most // 4))))
    values = {key: str(rng.randint(100, 999)) for key in keys}
    listed = "".join(f"{key}: {value}\n" for key, value in values.items())
    queried = rng.sample(keys, len(keys) // 2)
    questions = [part for key in queried for part in ((f"{key}:", False), (f" {values[key]}", True), ("\n", False))]
    return [(f"{listed}\n", False), *questions]


class Family(NamedTuple):
    """How questions are made, and how they are put: {q} is the question, the answer follows the template."""

    make: Make
    templates: Sequence[str]


def drills(rng: random.Random, most: int = MOST) -> Passages:
    """Write few-shot questions of one of 27 kinds with their answers; answers count from the third on.

    >>> text = "".join(part for part, _ in drills(random.Random(4)))
    >>> print(text.splitlines()[0])
    Sort the words regarded hints => hints regarded
    """
    family = FAMILIES[rng.choice(tuple(FAMILIES))]
    template, size = rng.choice(family.templates), rng.randint(2, max(2, most // 10))
    passages: list[tuple[str, bool]] = []
    for number in range(max(SHORTEST, most // (2 * size + 2))):
        question, answer = family.make(rng, size)
        passages += [(template.format(q=question), False), (f" {answer}\n", number >= SHOWN)]
    return passages


def _of_a_word(answer: Callable[[str], str], question: Callable[[str], str] = str) -> Make:
    def make(rng: random.Random, _size: int) -> tuple[str, str]:
        word = rng.choice(words())
        return question(word), answer(word)

    return make


def _of_words(answer: Callable[[Sequence[str]], str], between: str = " ", most: int = MOST) -> Make:
    def make(rng: random.Random, size: int) -> tuple[str, str]:
        some = rng.sample(words(), min(size, most))
        return between.join(some), answer(some)

    return make


def _of_numbers(answer: Callable[[Sequence[int]], int], between: str) -> Make:
    def make(rng: random.Random, _size: int) -> tuple[str, str]:
        numbers = _numbers(rng, 2)
        return between.join(map(str, numbers)), str(answer(numbers))

    return make


def _numbers(rng: random.Random, size: int) -> list[int]:
    return rng.sample(range(10 ** rng.choice((1, 2, 2, 3))), size)


def _sequence(rng: random.Random, size: int) -> tuple[str, str]:
    first, step, count = rng.randint(0, 60), rng.choice((1, 1, 2, 3, 5, 10, -1, -2)), size + 1
    first += 10 * count if step < 0 else 0
    *shown, last = (first + step * place for place in range(count + 1))
    return " ".join(map(str, shown)), str(last)


def _cyclic(rng: random.Random, _size: int) -> tuple[str, str]:
    cycle = rng.choice((DAYS, MONTHS))
    place = rng.randrange(len(cycle))
    return cycle[place], cycle[(place + 1) % len(cycle)]


def _letters(rng: random.Random, size: int) -> tuple[str, str]:
    first = rng.randrange(ord("a"), ord("z") - size)
    return " ".join(chr(first + place) for place in range(size)), chr(first + size)


def _sum(rng: random.Random, _size: int) -> tuple[str, str]:
    a, b = rng.randint(0, rng.choice((9, 9, 50))), rng.randint(0, 9)
    return f"{a} and {b}", str(a + b)


def _difference(rng: random.Random, _size: int) -> tuple[str, str]:
    a, b = rng.randint(0, rng.choice((9, 9, 50))), rng.randint(0, 9)
    return f"{min(a, b)} from {max(a, b)}", str(abs(a - b))


def _operator(rng: random.Random, _size: int) -> tuple[str, str]:
    a, b = rng.randint(1, 20), rng.randint(1, 9)
    word, value = rng.choice((("plus", a + b), ("less", a + b), ("times", a * b)))
    return (f"{a + b} {word} {a}", str(b)) if word == "less" else (f"{a} {word} {b}", str(value))


def _sorted_numbers(rng: random.Random, size: int) -> tuple[str, str]:
    numbers = _numbers(rng, size)
    return " ".join(map(str, numbers)), " ".join(map(str, sorted(numbers)))


def _lookup(rng: random.Random, size: int) -> tuple[str, str]:
    keys, values = rng.sample(words(), size), _numbers(rng, size)
    chosen = rng.randrange(size)
    listed = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    return f"{listed}; {keys[chosen]}", str(values[chosen])


def _owner(rng: random.Random, size: int) -> tuple[str, str]:
    names, things = rng.sample(NAMES, size), rng.sample(words(), size)
    chosen = rng.randrange(size)
    said = " ".join(f"{name} took the {thing}." for name, thing in zip(names, things, strict=True))
    return f"{said} Who took the {things[chosen]}?", names[chosen]


def _echoed(rng: random.Random, size: int) -> tuple[str, str]:
    text = " ".join(rng.sample(words(), size))
    return f'"{text}"', f'"{text}"'


def _place(rng: random.Random, size: int) -> tuple[str, str]:
    some = rng.sample(words(), size)
    name, place = rng.choice((("first", 0), ("last", -1), ("second", 1)))
    return f"{name} of {', '.join(some)}", some[place]


def _brackets(rng: random.Random, size: int) -> tuple[str, str]:
    opened = rng.choices(tuple(PAIRS), k=size)
    return "".join(opened), "".join(PAIRS[bracket] for bracket in reversed(opened))


def _tags(rng: random.Random, size: int) -> tuple[str, str]:
    tags = rng.sample(TAGS, min(size, 3))
    opened = "".join(f"<{tag}>" for tag in tags)
    return f"{opened}{rng.choice(words())}", "".join(f"</{tag}>" for tag in reversed(tags))


def _json_of_pairs(rng: random.Random, size: int) -> tuple[str, str]:
    keys = rng.sample(words(), min(size, 3))
    record: dict[str, object] = {key: rng.choice((rng.randint(0, 99), rng.choice(words()))) for key in keys}
    return ",".join(f"{key}={value}" for key, value in record.items()), json.dumps(record)


def _json_value(rng: random.Random, size: int) -> tuple[str, str]:
    record = dict(zip(rng.sample(words(), size), _numbers(rng, size), strict=True))
    key = rng.choice(tuple(record))
    return f"{json.dumps(record)} {key}", str(record[key])


def _problem(rng: random.Random, _size: int) -> tuple[str, str]:
    name, thing, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 9), rng.randint(1, 9)
    if rng.random() < 1 / 2:
        return f"{name} has {a} {thing} and finds {b} more.", f"{a + b} {thing}"
    return f"{name} has {a + b} {thing} and loses {b}.", f"{a} {thing}"


def _counted(rng: random.Random, _size: int) -> tuple[str, str]:
    count, mark = rng.randint(1, 9), rng.choice(("x", "o", "*", "#"))
    return " ".join(mark * count), str(count)


FAMILIES: Mapping[str, Family] = {
    "sequence": Family(_sequence, ("Series {q},", "{q} ...", "After {q} comes")),
    "cyclic": Family(_cyclic, ("{q} is followed by", "Following {q}:", "{q} >")),
    "letters": Family(_letters, ("{q} ->", "Letters {q}, then")),
    "sum": Family(_sum, ("{q} make", "Together {q}:", "Total of {q} is")),
    "difference": Family(_difference, ("Taking {q} leaves", "{q}:", "Subtract {q} ->")),
    "operator": Family(_operator, ("{q} is", "What is {q}?", "{q} gives")),
    "sorted-numbers": Family(_sorted_numbers, ("Sorted: {q} ->", "Order {q} =>", "{q} sorted is")),
    "sorted-words": Family(
        _of_words(lambda some: " ".join(sorted(some))), ("Alphabetical: {q} ->", "Sort the words {q} =>")
    ),
    "larger": Family(_of_numbers(max, " or "), ("Which is larger, {q}?", "max {q}:", "Greater of {q} =")),
    "smaller": Family(_of_numbers(min, ", "), ("Which is smaller, {q}?", "min({q}) =>", "Least of {q}:")),
    "lookup": Family(_lookup, ("{q} =>", "Table {q}:", "Find {q} ->")),
    "owner": Family(_owner, ("{q}", "Story: {q} Answer:")),
    "reversed": Family(
        _of_words(lambda some: " ".join(reversed(some))), ("{q} | reversed |", "Backwards {q} ->", "Turn around {q}:")
    ),
    "echoed": Family(_echoed, ("Say {q}:", "{q} repeated is", "echo {q}\n")),
    "twice": Family(_of_a_word("{0} {0}".format), ("{q} twice:", "Double {q} ->")),
    "place": Family(_place, ("The {q} is", "{q} ->", "Q: the {q}? A:")),
    "brackets": Family(_brackets, ("Balance {q} with", "{q} ends with", "closing {q}:")),
    "tags": Family(_tags, ("{q}", "HTML {q} ->")),
    "json-of-pairs": Family(_json_of_pairs, ("{q} as an object:", "Convert {q} =>")),
    "json-value": Family(_json_value, ("{q} ->", "Key of {q}:")),
    "csv": Family(_of_words(",".join, " and "), ("CSV of {q}:", "{q} =>")),
    "upper": Family(_of_a_word(str.upper), ("{q} in capitals:", "upper({q}) =", "SHOUT {q}:")),
    "title": Family(
        _of_words(lambda some: " ".join(map(str.capitalize, some)), most=3), ("Title: {q} ->", "Capitalize {q}:")
    ),
    "problem": Family(_problem, ("{q} Now there are", "{q} How many? Answer:", "Q: {q}\nA:")),
    "spelled": Family(_of_a_word("-".join), ("Spell {q}:", "{q} letter by letter:")),
    "joined": Family(_of_a_word(str, " ".join), ("Join {q} ->", "The letters {q} spell")),
    "counted": Family(_counted, ("How many marks: {q} ->", "Count {q} =")),
}

IN_CONTEXT: Mapping[str, Callable[[random.Random, int], Passages]] = {
    "copying": copying,
    "recall": recall,
    "drills": drills,
}
