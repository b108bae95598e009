"""Text in, equal windows of token ids out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shortstack.data.sources import TEXT, parse_samples, read_documents
from shortstack.errors import DataError, parameter
from shortstack.machine.options import check_options, option

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """Equal windows of token ids, [samples, length], and where they come from. bos: each window starts with BOS."""

    ids: Tensor
    source: str
    bos: bool
    seed: int

    @classmethod
    def read(
        cls,
        source: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        samples: int | None = 10,
        length: int = 128,
        seed: int = 0,
        held_out: bool = False,
        at_least: int | None = None,
    ) -> Tokens:
        """`samples` random windows of `length` tokens (BOS included), or with None every window, in order.

        Windows never overlap and never cross documents. With several documents each gives one window at a random place,
        as in the paper; a document shorter than a window is passed over. BOS is added where the tokenizer itself adds it.
        held_out: of `pydoc`, read the last 20 % instead of the first 80 %. at_least: fewer than `samples` will do, where the
        text has no more, but not fewer than this.

        Raises:
            DataError: no such text, not UTF-8, a wrong line, or fewer windows than asked for.
        """
        import torch

        bos = bos_ids(tokenizer)
        room = length - len(bos)
        if room < 2 or (samples is not None and samples < 1):
            raise DataError(
                source,
                expected="at least one window of at least two tokens beside BOS",
                found=f"samples {samples}, length {length}",
                fix="ask for more",
            )
        sizes: list[int] = []

        def documents() -> Iterator[list[int]]:
            for text in read_documents(source, seed=seed, held_out=held_out):
                ids = encode(tokenizer, text)
                sizes.append(len(ids))
                yield ids

        windows = [[*bos, *window] for window in _windows(documents(), room, samples, seed)]
        needed = at_least or samples or 1
        if len(windows) < needed:
            raise DataError(
                source,
                expected=f"{needed} window{'s' * (needed > 1)} of {length} tokens",
                found=f"text for {len(windows)}: {sum(sizes):,} tokens in "
                f"{len(sizes)} document{'s' * (len(sizes) != 1)}",
                fix=f"give more text, or a smaller {parameter('samples')} or {parameter('length')}",
            )
        return cls(torch.tensor(windows), source, bool(bos), seed)

    @property
    def sha256(self) -> str:
        """Digest of the ids, as little-endian int32."""
        return hashlib.sha256(self.ids.numpy().astype("<i4").tobytes()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What a result says about its tokens."""
        samples, length = self.ids.shape
        return {
            "source": self.source,
            "samples": samples,
            "length": length,
            "bos": self.bos,
            "seed": self.seed,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class CalibrationText:
    """The text that metrics look at.

    samples: windows drawn by seed, or "all" in order. length: tokens of a window, BOS included.
    """

    text: str = option("pydoc", help=f"Calibration text: {TEXT}")
    samples: int | str = option(10, help="Calibration windows: a number drawn by seed, or all in order.")
    length: int = option(128, help="Tokens per calibration window.", minimum=4)

    def __post_init__(self) -> None:
        parse_samples(self.samples)
        check_options(self)

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0, *, at_least: int | None = None) -> Tokens:
        """The windows; at_least: as in Tokens.read.

        Raises:
            DataError: as Tokens.read.
        """
        samples = parse_samples(self.samples)
        return Tokens.read(self.text, tokenizer, samples=samples, length=self.length, seed=seed, at_least=at_least)


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] when the tokenizer puts it before text by itself, else []."""
    first = tokenizer("a").input_ids[:1]
    return list(first) if first and first[0] == tokenizer.bos_token_id else []


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether a token id means the same to both."""
    return bool(one.get_vocab() == other.get_vocab())


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text without special tokens.

    Raises:
        DataError: the text has a lone surrogate, which JSON can spell and no encoding can.
    """
    check_text(text)
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def check_text(text: str) -> None:
    """Raise DataError where text cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text starting {text[:40]!r}",
            expected="text that UTF-8 can hold",
            found=f"a lone surrogate at character {error.start}",
            fix="correct or delete that record",
        ) from error


def _windows(documents: Iterator[list[int]], room: int, samples: int | None, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    windows: list[list[int]] = []
    whole: list[int] | None = None
    for count, ids in enumerate(documents):
        whole = ids if count == 0 else None
        if samples is None:
            windows += [ids[start : start + room] for start in range(0, len(ids) - room + 1, room)]
        elif len(ids) >= room:
            start = rng.randrange(len(ids) - room + 1)
            windows.append(ids[start : start + room])
        if samples and count and len(windows) >= samples:
            return windows[:samples]
    if samples and whole is not None:  # a single document: all windows come from it
        starts = range(0, len(whole) - room + 1, room)
        return [whole[start : start + room] for start in sorted(rng.sample(starts, min(samples, len(starts))))]
    return windows
