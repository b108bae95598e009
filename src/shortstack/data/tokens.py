"""Text in, equal windows of token ids out."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from shortstack.data.in_context import IN_CONTEXT, MOST
from shortstack.data.sources import OWN, is_endless, is_own, is_prose, label, public_name, read_documents
from shortstack.errors import DataError
from shortstack.machine.numbers import is_share, part_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MISSES = 40  # texts that do not fit into an empty window before that is an error
HELD_OUT = 4  # one sample in four is held out, of each source
JUDGING = 8  # one sample in eight judges, where the held-out ones choose
SPREAD = 4  # times the windows are read of a folder or a large text, from which they are drawn
LONG = 10_000  # characters of a text whose ids are kept for the next time it is read

TOKENIZERS: WeakKeyDictionary[PreTrainedTokenizerBase, str] = WeakKeyDictionary()  # by the digest of their settings


@dataclass(frozen=True)
class Kind:
    """Number and weight of the samples of one source."""

    source: str
    samples: int
    weight: float = 1.0


@dataclass(frozen=True)
class Tokens:
    """Equal windows of token ids, [samples, length], and their sources. bos: each window starts with BOS.

    kinds: the sources, where there are several, their samples one after the other. counted: [samples, length], which tokens
    count when they are predicted; None: all.
    """

    ids: Tensor
    source: str
    bos: bool
    seed: int
    kinds: tuple[Kind, ...] = ()
    counted: Tensor | None = None

    @classmethod
    def given(cls, ids: Tensor) -> Tokens:
        """Take windows [samples, length] of which nothing else is known."""
        return cls(ids, "given", False, 0)

    @classmethod
    def read(
        cls,
        source: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        samples: float | None = 10,
        length: int = 128,
        seed: int = 0,
        held_out: bool = False,
        at_least: int | None = None,
    ) -> Tokens:
        """Read `samples` random windows of `length` tokens (BOS included) of one source; a float is a share, None is all.

        Windows never overlap and never cross documents. With several documents each gives one window at a random place,
        as in the paper; a document shorter than a window is passed over. Windows of a folder and of a large text file lie
        anywhere in it. BOS is added where the tokenizer itself adds it.
        held_out: of `pydoc`, read the last 20 % instead of the first 80 %. at_least: accept fewer windows than `samples`,
        but not fewer than this. Windows of what a program or a model writes are filled with one text after the other.

        Raises:
            DataError: no such text, not UTF-8, a wrong line, or fewer windows than asked for.
        """
        import torch

        bos, name = bos_ids(tokenizer), label(source)
        amount = None if samples is None or is_share(samples) else int(samples)
        if length < len(bos) + 2:
            raise DataError(f"windows of {length} tokens are too short; give at least {len(bos) + 2}", option="length")
        if is_endless(source):
            if amount is None:
                raise DataError(f"{name} has no end; give a number of windows", option="samples")
            rng = random.Random(f"{seed} held out {source}" if held_out else f"{seed} {source}")
            ids, counted = made_windows(source, tokenizer, length, amount, rng)
        else:
            documents = (encode(tokenizer, text) for text in read_documents(source, seed=seed, held_out=held_out))
            windows = _windows(documents, length - len(bos), amount, seed, anywhere=is_prose(source))
            ids, counted = torch.tensor([[*bos, *window] for window in windows], dtype=torch.long), None
        needed = min(filter(None, (at_least, amount)), default=1)
        if len(ids) < needed:
            few = f"{name} has {len(ids)} of {needed} windows of {length} tokens"
            raise DataError(f"{few}; give more text, or ask for fewer or shorter windows")
        tokens = cls(ids, name, bool(bos), seed, counted=None if is_own(source) else counted)
        return tokens.drawn(part_of(samples, len(ids))) if is_share(samples) else tokens

    @classmethod
    def joined(cls, parts: Sequence[Tokens], weights: Sequence[float], source: str) -> Tokens:
        """Join windows of several sources; source: the name of all together."""
        import torch

        counted = [
            torch.ones_like(part.ids, dtype=torch.bool) if part.counted is None else part.counted for part in parts
        ]
        return cls(
            torch.cat([part.ids for part in parts]),
            source,
            parts[0].bos,
            parts[0].seed,
            tuple(Kind(part.source, len(part.ids), weight) for part, weight in zip(parts, weights, strict=True)),
            torch.cat(counted) if any(part.counted is not None for part in parts) else None,
        )

    @property
    def parts(self) -> tuple[tuple[Kind, slice], ...]:
        """Each kind and its rows; one kind where there is one source."""
        kinds = self.kinds or (Kind(self.source, len(self.ids)),)
        ends = itertools.accumulate(kind.samples for kind in kinds)
        return tuple((kind, slice(end - kind.samples, end)) for kind, end in zip(kinds, ends, strict=True))

    def rows(self, chosen: Tensor) -> Tokens:
        """Take the windows for which chosen [samples] is true; of each kind at least one must be."""
        kinds = tuple(replace(kind, samples=int(chosen[rows].sum())) for kind, rows in self.parts)
        counted = None if self.counted is None else self.counted[chosen]
        return replace(self, ids=self.ids[chosen], kinds=kinds if self.kinds else (), counted=counted)

    def drawn(self, amount: int) -> Tokens:
        """Draw a number of the windows by the seed, and leave them in their order."""
        import torch

        chosen = sorted(random.Random(self.seed).sample(range(len(self.ids)), amount))
        return self.rows(torch.isin(torch.arange(len(self.ids)), torch.tensor(chosen)))

    @property
    def sha256(self) -> str:
        """Digest of the ids, as little-endian int32."""
        return hashlib.sha256(self.ids.numpy().astype("<i4").tobytes()).hexdigest()

    def record(self) -> dict[str, Any]:
        """Return a JSON-able description of the tokens, for results; files without their folders."""
        samples, length = self.ids.shape
        source = self.source if self.kinds else public_name(self.source)
        kinds = [asdict(kind) | {"source": public_name(kind.source)} for kind in self.kinds]
        known = {"source": source, "samples": samples, "length": length, "bos": self.bos, "seed": self.seed}
        return {**known, "sha256": self.sha256, **({"kinds": kinds} if kinds else {})}


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return [BOS] when the tokenizer puts it before text by itself, else []."""
    first = tokenizer("a").input_ids[:1]
    return list(first) if first and first[0] == tokenizer.bos_token_id else []


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return True if a token id means the same to both."""
    return bool(one.get_vocab() == other.get_vocab())


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise text, without special tokens; long text once in a process."""
    if len(text) < LONG:
        return _encode(tokenizer, text)
    return list(_encode_once(Settings.of(tokenizer), text))


@dataclass(frozen=True)
class Settings:
    """A tokenizer that equals every other one with the same settings."""

    settings: tuple[object, ...]
    tokenizer: PreTrainedTokenizerBase = field(compare=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Settings:
        if tokenizer not in TOKENIZERS:
            settings = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else f"{id(tokenizer)}"
            TOKENIZERS[tokenizer] = hashlib.sha256(settings.encode()).hexdigest()
        changing = len(tokenizer), tokenizer.chat_template, tokenizer.eos_token_id, *bos_ids(tokenizer)
        return cls((TOKENIZERS[tokenizer], *map(str, changing)), tokenizer)


@functools.lru_cache(maxsize=1024)
def _encode_once(known: Settings, text: str) -> array[int]:
    return array("i", _encode(known.tokenizer, text))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    check_text(text)
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def encode_after(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise text that stands after other text: Llama 2's puts a space before all that it is given."""
    mark, both = encode(tokenizer, "\n"), encode(tokenizer, f"\n{text}")
    return both[len(mark) :] if both[: len(mark)] == mark else encode(tokenizer, text)


def check_text(text: str) -> None:
    """Raise DataError where text cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"character {error.start} of the text starting {text[:40]!r}"
        raise DataError(
            f"{place} is a lone surrogate, which UTF-8 cannot hold; correct or delete that record"
        ) from error


def own_windows(file: str, room: int, amount: int) -> list[list[int]]:
    """Cut the texts of a base model, one after the other, into windows of `room` tokens, as many as there are."""
    with open(file, encoding="utf-8") as lines:
        stream = [token for line in lines for ids in json.loads(line)["texts"] for token in ids]
    places = range(0, len(stream) - room + 1, room)
    return [stream[start : start + room] for start in places[:amount]]


def made_windows(
    source: str, tokenizer: PreTrainedTokenizerBase, length: int, amount: int, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Make windows of an endless source, and return which of their tokens count, too: [amount, length] each."""
    import torch

    if source == OWN:
        raise DataError("self is written by the base model; read it by with_own_text(), or name other texts")
    own, bos = is_own(source), bos_ids(tokenizer)
    room = length - len(bos)
    if own:
        windows = [[(token, True) for token in window] for window in own_windows(source, room, amount)]
    else:
        windows = [_filled_window(source, tokenizer, room, rng) for _ in range(amount)]
    start = [(token, own) for token in bos]
    pairs = torch.tensor([[*start, *window] for window in windows], dtype=torch.long).view(len(windows), length, 2)
    return pairs[..., 0], pairs[..., 1].bool()


def _filled_window(
    source: str, tokenizer: PreTrainedTokenizerBase, room: int, rng: random.Random
) -> list[tuple[int, bool]]:
    """Fill `room` tokens with texts one after the other, shorter ones where they would not fit; mark which tokens count."""
    window: list[tuple[int, bool]] = []
    between, most, misses = [(token, False) for token in encode_after(tokenizer, "\n\n")], MOST, 0
    while most:
        text = list(_marked(IN_CONTEXT[source](rng, most), tokenizer, after=bool(window)))
        if len(window) + len(text) <= room:
            window += [*text, *between]
        else:
            misses += 1
            most = most // 2 or int(not window and misses < MISSES)
    if not window:
        raise DataError(f"no text of {source} fits into a window of {room} tokens; give a larger one", option="length")
    return [*window, *text][:room]


def _marked(
    passages: Iterable[tuple[str, bool]], tokenizer: PreTrainedTokenizerBase, *, after: bool
) -> Iterator[tuple[int, bool]]:
    """Tokenise the passages; mark each token of one that the text before determines. after: other texts."""
    encoded = encode_after if after else encode
    for text, determined in passages:
        yield from ((token, determined) for token in encoded(tokenizer, text))
        encoded = encode_after


def _windows(
    documents: Iterator[list[int]], room: int, samples: int | None, seed: int, *, anywhere: bool
) -> list[list[int]]:
    """Return every window of the documents, or draw some by the seed; anywhere: not one of each document."""
    rng, first = random.Random(seed), next(documents, [])
    second = None if anywhere or samples is None else next(documents, None)
    if samples is not None and second is not None:
        return [*islice(_one_of_each(chain([first, second], documents), room, rng), samples)]
    most = math.inf if samples is None else SPREAD * samples * room
    read = _until(chain([first], documents), most)
    places = [(ids, start) for ids in read for start in range(0, len(ids) - room + 1, room)]
    if samples is not None and samples < len(places):
        next(_one_of_each([first], room, rng), None)  # the first draw is that of a document among several
        places = [places[number] for number in sorted(rng.sample(range(len(places)), samples))]
    return [ids[start : start + room] for ids, start in places]


def _one_of_each(documents: Iterable[list[int]], room: int, rng: random.Random) -> Iterator[list[int]]:
    for ids in documents:
        if len(ids) >= room:
            start = rng.randrange(len(ids) - room + 1)
            yield ids[start : start + room]


def _until(documents: Iterable[list[int]], tokens: float) -> Iterator[list[int]]:
    """Yield documents until they have a number of tokens."""
    for ids in documents:
        yield ids
        tokens -= len(ids)
        if tokens <= 0:
            return


def check_enough(tokens: Tokens, fix: str, *, at_least: int = HELD_OUT) -> None:
    """Refuse samples of which none could be held out, or that are fewer than `at_least`."""
    for kind, _ in tokens.parts:
        if kind.samples < at_least:
            few = f"{kind.source} has {kind.samples} samples, of which one in {at_least} is held out"
            raise DataError(f"{few}; {fix}")


def split(tokens: Tokens, each: int = HELD_OUT) -> tuple[Tokens, Tokens]:
    """Split off every fourth sample of each kind, which is held out, and return it second; each: in place of four."""
    import torch

    held_out = torch.cat([torch.arange(kind.samples) % each == each - 1 for kind, _ in tokens.parts])
    return tokens.rows(~held_out), tokens.rows(held_out)
