"""Several sources at once, each with a weight: pydoc, or mix, or notes.txt=2,self,copying=0.3."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shortstack.data.in_context import IN_CONTEXT, words
from shortstack.data.sources import OWN, SOURCES, check_source, public_name, read_records
from shortstack.errors import DataError
from shortstack.machine.files import digest, file_digest

MIX = "mix"
MIXED = "pydoc,self,copying,drills"  # what mix stands for
READ = "pydoc,copying,drills"  # the part of it that needs no model
SEVERAL = (
    "self is text the model generates. Separate several with commas; add =WEIGHT to a name for a weight other than 1. "
    f"{MIX} is {MIXED}."
)

Written = Callable[[int], Sequence[Sequence[int]]]  # at least so many texts that a model wrote, as token ids


@dataclass(frozen=True)
class Weighted:
    """A source, and how much it counts beside others."""

    source: str
    weight: float = 1.0

    @property
    def endless(self) -> bool:
        """Whether it is written as it is read, so that it has no end."""
        return self.source == OWN or self.source in IN_CONTEXT

    @property
    def digest(self) -> str:
        """A digest of its content, looked up by name in the order in which a text is read.

        A hub dataset is known by its name, and so is what a model or a seeded program writes: what it comes from is another
        input of a step.
        """
        name = self.source
        if self.endless:
            return digest({"made": name, "words": words()})
        if name in SOURCES:
            return digest([SOURCES[name](held_out) for held_out in (False, True)])
        return file_digest(Path(name)) if Path(name).is_file() else name

    def read(self) -> None:
        """Refuse a file with a record that cannot be read; the hub is not asked."""
        if not self.endless and self.source not in SOURCES and Path(self.source).is_file():
            deque(read_records(self.source), maxlen=0)


def listed_texts() -> list[dict[str, str]]:
    """Return name and content of the texts that come along, by the first line of what makes each."""
    rows = [(name, (make.__doc__ or name).splitlines()[0]) for name, make in {**SOURCES, **IN_CONTEXT}.items()]
    rows += [(OWN, "Let the model generate chats, questions as well as answers."), (MIX, f"Use {MIXED} together.")]
    return [{"name": name, "content": content} for name, content in rows]


def parse_sources(text: str, option: str = "") -> tuple[Weighted, ...]:
    """List the sources that are named, in this order; option: what named them, for an error.

    >>> parse_sources("notes.txt=2,self")
    (Weighted(source='notes.txt', weight=2.0), Weighted(source='self', weight=1.0))
    >>> [each.source for each in parse_sources("mix")]
    ['pydoc', 'self', 'copying', 'drills']
    """
    if text in SOURCES or os.path.isfile(text):  # a file's name may have commas
        return (Weighted(text),)
    sources = [weighted for part in text.split(",") for weighted in _weighted(part.strip(), text, option)]
    names = [weighted.source for weighted in sources]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        fix = f"give it one weight; {MIX} is {MIXED}"
        raise DataError(f"{twice} twice", expected="each source once", fix=fix, option=option, where=text)
    return tuple(sources)


def _weighted(part: str, text: str, option: str) -> tuple[Weighted, ...]:
    """Read the name of a source and its weight; `mix` is its sources, their weights multiplied by its own."""
    name, _, weight = part.rpartition("=") if "=" in part else (part, "", "1")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not name or not 0 < number < math.inf:
        raise DataError(
            repr(part),
            expected="comma-separated sources, each optionally with =WEIGHT above 0",
            fix="write a number above 0 after the name, as in pydoc=2,self",
            option=option,
            where=text,
        )
    if name == MIX:
        return tuple(Weighted(weighted.source, number * weighted.weight) for weighted in parse_sources(MIXED))
    return (Weighted(name, number),)


def public_names(text: str) -> str:
    """Name the sources of a text as others may see them, with their weights.

    >>> public_names("mix=2,/home/me/chats.jsonl=0.5")
    'mix=2,chats.jsonl=0.5'
    """
    if text in SOURCES or os.path.isfile(text):  # a file's name may have commas
        return public_name(text)
    parts = [part.strip().rpartition("=") if "=" in part else (part.strip(), "", "") for part in text.split(",")]
    return ",".join(f"{public_name(name)}{equals}{weight}" for name, equals, weight in parts)


def beside(text: str, sources: Sequence[str]) -> str:
    """Name the text and those sources that it has not; a name that a list would take apart stays out.

    >>> beside("mix", ["notes.txt", "self"])
    'mix,notes.txt'
    """
    known = {weighted.source for weighted in parse_sources(text)}
    if not all(map(_listable, known)):
        return text
    return ",".join([text, *(name for name in sources if name not in known and _listable(name))])


def _listable(name: str) -> bool:
    return not {",", "="} & set(name)


def unwritten(text: str) -> str:
    """Return the text with what needs no model in place of `mix`.

    >>> unwritten("mix=2,notes.txt")
    'pydoc=2,copying=2,drills=2,notes.txt'
    """
    parts = []
    for part in text.split(","):
        name, given, weight = part.strip().partition("=")
        parts += [f"{each}{given}{weight}" for each in READ.split(",")] if name == MIX else [part]
    return ",".join(parts)


def check_sources(text: str, option: str = "") -> tuple[Weighted, ...]:
    """List the sources that are named, if each of them is one that can be read; the hub is not asked."""
    sources = parse_sources(text, option)
    for weighted in sources:
        if not weighted.endless:
            check_source(weighted.source, option=option)
    return sources


def text_digest(name: str) -> str:
    """Digest of a text, of several, or of a folder of files."""
    folder = Path(name)
    if os.path.isdir(name) and name not in SOURCES:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return digest({str(path.relative_to(folder)): file_digest(path) for path in files})
    parts = check_sources(name)
    if len(parts) > 1 or parts[0].source != name:
        return digest({weighted.source: [weighted.weight, weighted.digest] for weighted in parts})
    return parts[0].digest
