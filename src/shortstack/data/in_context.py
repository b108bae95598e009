"""Texts that only what stands before explains, made by a seeded program: what a model must copy, not know.

Prose hardly asks for it, so metrics on prose call the layers that do it cheap (docs/decisions.md). Half of such a text is
noise; the passages that the rest determines are marked, and they alone count.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Mapping, Sequence

from shortstack.data.sources import SOURCES

SYMBOLS = "{}[]()<>;:=+-*/#"
MOST = 48  # words of a text
MOST_NUMBER = 99  # behind a symbol, so that a sequence of them does not repeat itself

Passages = Sequence[tuple[str, bool]]  # text, and whether what stands before it says what it is


def copying(rng: random.Random, most: int = MOST) -> Passages:
    """Random words, or symbols and numbers in one text of three, and the same once more.

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
    """A list of words with numbers, then some of its words again: the number that belongs to each is determined.

    >>> [determined for _, determined in recall(random.Random(1))][:3]
    [False, False, True]
    """
    least = -(-most // 12)
    keys = rng.sample(words(), max(2, rng.randint(least, max(least, most // 4))))
    values = {key: str(rng.randint(100, 999)) for key in keys}
    listed = "".join(f"{key}: {value}\n" for key, value in values.items())
    asked = rng.sample(keys, len(keys) // 2)
    questions = [part for key in asked for part in ((f"{key}:", False), (f" {values[key]}", True), ("\n", False))]
    return [(f"{listed}\n", False), *questions]


IN_CONTEXT: Mapping[str, Callable[[random.Random, int], Passages]] = {"copying": copying, "recall": recall}


@functools.cache
def words() -> tuple[str, ...]:
    """The words of the text that comes along, from the part that calibrates."""
    return tuple(sorted(set(re.findall(r"\b[a-z]{3,9}\b", SOURCES["pydoc"](False)))))
