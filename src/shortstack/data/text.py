"""Text(source, samples, length): sources with weights, and the number and length of their windows or samples.

Calibration, repair, healing and evaluation data are all a Text.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo

from shortstack.data import sources
from shortstack.data.in_context import IN_CONTEXT
from shortstack.data.sources import OWN, SOURCES
from shortstack.data.tokens import JUDGING, Tokens
from shortstack.errors import DataError
from shortstack.machine.files import digest
from shortstack.machine.options import Amount, options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIX = "mix"
MIXED = ("pydoc", OWN, "copying", "drills")  # what mix stands for
SOURCES_HELP = (
    f"{sources.NAMES}; self is text the base model writes, {MIX} is {', '.join(MIXED)}. "
    "Repeat the option for several; NAME=WEIGHT gives a weight other than 1."
)


@dataclass(frozen=True)
class Source:
    """A source of text, and its weight beside others."""

    name: str
    weight: float = 1.0

    @property
    def typed(self) -> str:
        """The name as it is typed: NAME, or NAME=WEIGHT."""
        return f"{self.name}={self.weight:g}" if self.weight != 1 else self.name

    @property
    def label(self) -> str:
        return sources.label(self.name)

    @property
    def endless(self) -> bool:
        return sources.is_endless(self.name)


def read_source(value: Any) -> str | dict[str, float]:
    """Return a source as a Text keeps it: a name, or several with their weights; rows in memory become a file.

    >>> read_source("notes.txt"), read_source(["notes.txt=2", "self"])
    ('notes.txt', {'notes.txt': 2.0, 'self': 1.0})
    """
    weights = _weights(value)
    return next(iter(weights)) if len(weights) == 1 else weights


def _read_option(value: Any, info: ValidationInfo) -> str | dict[str, float]:
    with _about(str(info.field_name)):
        return read_source(value)


@contextmanager
def _about(option: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise error.about(option) from None


Rows = Iterable[Any] | Path  # all that a Text takes as its source
Sources = Annotated[  # names, weights by name, or rows: texts, chats or records in a list or a datasets.Dataset
    Iterable[Any], PlainValidator(_read_option, json_schema_input_type=str | list[str] | dict[str, float])
]


def _weights(value: Any) -> dict[str, float]:
    """Return the weights of sources by name, each source once."""
    if isinstance(value, Mapping):
        pairs = [(str(name), weight) for name, weight in value.items()]
    elif isinstance(value, str | Path):
        pairs = [_weighted(str(value))]
    elif hasattr(value, "__iter__"):
        rows = list(value)
        pairs = [_weighted(str(row)) for row in rows if isinstance(row, str | Path)]
        if not rows or len(pairs) < len(rows) or not all(sources.is_name(name) for name, _ in pairs):
            pairs = [(sources.rows_file(rows), 1.0)]
    else:
        raise DataError(f"{value!r:.60} is no data; give a name such as pydoc, or a list of texts, chats or records")
    names = [source.name for source in _expanded(pairs)]
    if not names or len({*names}) < len(names):
        raise DataError(f"{', '.join(names) or 'no text'}; give each text once")
    for name, weight in pairs:
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise DataError(f"{name}={weight!r:.40}: the weight of a text is a number above 0")
    return {name: float(weight) for name, weight in pairs}


def _weighted(text: str) -> tuple[str, float]:
    """Split NAME=WEIGHT; a file whose own name is like that has none."""
    name, _, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if name and not os.path.exists(text) else (text, 1.0)
    except ValueError:
        return text, 1.0


def _expanded(weights: Iterable[tuple[str, float]]) -> list[Source]:
    """Return the sources, those of mix one by one."""
    named = ((part, weight) for name, weight in weights for part in (MIXED if name == MIX else (name,)))
    return [Source(name, weight) for name, weight in named]


@options
class Text:
    """Text to calibrate, repair, heal or measure on.

    source: names of texts, a mapping of names to weights, or rows: texts, chats or records in a list or a datasets.Dataset.
    samples: windows or samples of each source, drawn by seed; a float is a share, None is all. length: tokens of one, BOS
    included.
    """

    source: Sources = Field(MIX, description=f"Text: {SOURCES_HELP}")
    samples: Amount | None = Field(10, description="Number of windows per text, or a share such as 10%.")
    length: int = Field(128, ge=2, description="Tokens per window.")

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the sources by the names that were given."""
        return {self.source: 1.0} if isinstance(self.source, str) else dict(self.source)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources with their weights.

        >>> [source.name for source in Text("mix").sources]
        ['pydoc', 'self', 'copying', 'drills']
        """
        return tuple(_expanded(self.weights.items()))

    @property
    def name(self) -> str:
        """The names of the sources for people, files without their folders.

        >>> Text({"my/notes.txt": 2, "self": 1}).name
        'notes.txt=2, self'
        """
        return ", ".join(public_names(self.source))

    @property
    def words(self) -> list[str]:
        """The sources as they are typed."""
        return [source.typed for source in self.sources]

    @property
    def own(self) -> bool:
        """Whether the base model is yet to write a part of it."""
        return any(source.name == OWN for source in self.sources)

    @property
    def digest(self) -> str:
        return digest([[source.weight, sources.source_digest(source.name)] for source in self.sources])

    def check(self, option: str = "source") -> None:
        """Refuse sources that cannot be read, before a model is opened; the hub is not asked."""
        with _about(option):
            for source in self.sources:
                sources.check_source(source.name)

    def replacing(self, other: Mapping[str, str | None]) -> Text:
        """Return the text with other sources in the place of some, or none for None."""
        named = ((other.get(source.name, source.name), source.weight) for source in self.sources)
        return replace(self, source={name: weight for name, weight in named if name})

    def adding(self, names: Iterable[str]) -> Text:
        """Return the text with the sources that it does not have."""
        weights = {source.name: source.weight for source in self.sources}
        return replace(self, source=weights | {name: weights.get(name, 1.0) for name in names})

    def of_all(self, samples: int) -> Text:
        """Return the text with about this number of windows of all its sources, at least JUDGING of each."""
        return replace(self, samples=max(JUDGING, -(-samples // len(self.sources))))

    def windows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        seed: int = 0,
        *,
        held_out: bool = False,
        at_least: int | None = None,
    ) -> dict[str, Tokens]:
        """Read the windows of each source, by its label. Arguments and errors are those of Tokens.read()."""
        how: dict[str, Any] = {"samples": self.samples, "length": self.length, "seed": seed, "at_least": at_least}
        read = (Tokens.read(source.name, tokenizer, held_out=held_out, **how) for source in self.sources)
        return {tokens.source: tokens for tokens in read}

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0, *, at_least: int | None = None) -> Tokens:
        """Read the windows of all sources, one source after the other."""
        parts = [*self.windows(tokenizer, seed, at_least=at_least).values()]
        return parts[0] if len(parts) == 1 else Tokens.joined(parts, [each.weight for each in self.sources], self.name)


def public_names(source: Any) -> list[str]:
    """Return the names of sources as others may see them, with their weights.

    >>> public_names({"mix": 2, "/home/me/chats.jsonl": 1})
    ['mix=2', 'chats.jsonl']
    """
    weights = {source: 1.0} if isinstance(source, str) else source
    return [Source(sources.public_name(name), weight).typed for name, weight in weights.items()]


def listed_texts() -> list[dict[str, str]]:
    """Return name and content of the built-in texts, by the first line of what makes each."""
    rows = [(name, (make.__doc__ or name).splitlines()[0]) for name, make in {**SOURCES, **IN_CONTEXT}.items()]
    rows += [(OWN, "Let the base model generate chats, questions as well as answers.")]
    rows += [(MIX, f"Use {', '.join(MIXED)} together.")]
    return [{"name": name, "content": content} for name, content in rows]
