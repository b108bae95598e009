"""Text in, equal windows of token ids out."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from shortstack.data.in_context import IN_CONTEXT, MOST
from shortstack.data.mixture import MIX, SEVERAL, Weighted, Written, check_sources, parse_sources, public_names
from shortstack.data.sources import OWN, TEXT, Rows, parse_samples, public_name, read_documents, source_of
from shortstack.errors import DataError
from shortstack.machine.options import check_options, option

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MISSES = 40  # texts that do not fit into an empty window, after which none is said to
HELD_OUT = 4  # one sample in so many is held out, of each kind
JUDGING = 8  # one sample in so many judges, where what is fitted chooses on those that are held out


@dataclass(frozen=True)
class Kind:
    """So many samples of one source, and how much they count beside those of others."""

    source: str
    samples: int
    weight: float = 1.0


@dataclass(frozen=True)
class Tokens:
    """Equal windows of token ids, [samples, length], and where they come from. bos: each window starts with BOS.

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
        source: str | Rows,
        tokenizer: PreTrainedTokenizerBase,
        *,
        samples: int | None = 10,
        length: int = 128,
        seed: int = 0,
        held_out: bool = False,
        at_least: int | None = None,
        written: Written | None = None,
    ) -> Tokens:
        """Read `samples` random windows of `length` tokens (BOS included), or with None every window.

        Windows never overlap and never cross documents. With several documents each gives one window at a random place,
        as in the paper; a document shorter than a window is passed over. BOS is added where the tokenizer itself adds it.
        held_out: of `pydoc`, read the last 20 % instead of the first 80 %. at_least: fewer than `samples` will do, where the
        text has no more, but not fewer than this. written: for `self`, gives texts that the model wrote; windows are filled
        with one after the other. So they are of a source of IN_CONTEXT, where what the text before determines counts.

        Raises:
            DataError: no such text, not UTF-8, a wrong line, or fewer windows than asked for.
        """
        import torch

        source, bos = source_of(source), bos_ids(tokenizer)
        room = length - len(bos)
        if room < 2 or (samples is not None and samples < 1):
            raise DataError(
                f"samples {samples}, length {length}",
                expected="at least one window of at least two tokens beside BOS",
                fix="ask for more",
                where=source,
            )
        if Weighted(source).endless:
            if samples is None:
                raise endless(source)
            rng = random.Random(f"{seed} held out {source}" if held_out else f"{seed} {source}")
            ids, counted = made_windows(source, tokenizer, length, samples, rng, written)
            return cls(ids, source, bool(bos), seed, counted=None if source == OWN else counted)
        sizes: list[int] = []

        def documents() -> Iterator[list[int]]:
            for text in read_documents(source, seed=seed, held_out=held_out):
                ids = encode(tokenizer, text)
                sizes.append(len(ids))
                yield ids

        windows = [[*bos, *window] for window in _windows(documents(), room, samples, seed)]
        needed = min(filter(None, (at_least, samples)), default=1)
        if len(windows) < needed:
            raise DataError(
                f"text for {len(windows)} of them: {sum(sizes):,} tokens in "
                f"{len(sizes)} document{'s' * (len(sizes) != 1)}",
                expected=f"{needed} window{'s' * (needed > 1)} of {length} tokens",
                fix="give more text, or ask for fewer samples or a smaller length",
                where=source,
            )
        return cls(torch.tensor(windows), source, bool(bos), seed)

    @classmethod
    def joined(cls, parts: Sequence[Tokens], weights: Sequence[float], source: str) -> Tokens:
        """Join windows of several sources; source: what is said of all together."""
        import torch

        ids = torch.cat([part.ids for part in parts])
        masks = [
            torch.ones_like(part.ids, dtype=torch.bool) if part.counted is None else part.counted for part in parts
        ]
        counted = torch.cat(masks) if any(part.counted is not None for part in parts) else None
        kinds = [Kind(part.source, len(part.ids), weight) for part, weight in zip(parts, weights, strict=True)]
        return cls(ids, source, parts[0].bos, parts[0].seed, tuple(kinds), counted)

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
        """Draw so many of the windows by the seed, and leave them in their order."""
        import torch

        chosen = sorted(random.Random(self.seed).sample(range(len(self.ids)), amount))
        return self.rows(torch.isin(torch.arange(len(self.ids)), torch.tensor(chosen)))

    @property
    def sha256(self) -> str:
        """Digest of the ids, as little-endian int32."""
        return hashlib.sha256(self.ids.numpy().astype("<i4").tobytes()).hexdigest()

    def record(self) -> dict[str, Any]:
        """Return a JSON-able description of the tokens, for results."""
        samples, length = self.ids.shape
        return {
            "source": public_names(self.source),
            "samples": samples,
            "length": length,
            "bos": self.bos,
            "seed": self.seed,
            "sha256": self.sha256,
            **(
                {"kinds": [{**asdict(kind), "source": public_name(kind.source)} for kind in self.kinds]}
                if self.kinds
                else {}
            ),
        }


@dataclass(frozen=True)
class CalibrationText:
    """The text that metrics look at.

    text: sources by name, as source_of() gives them of rows in memory. samples: windows of each source, drawn by seed, or
    "all". length: tokens of a window, BOS included.
    """

    text: str = option(MIX, help=f"Calibration text: {TEXT} {SEVERAL}")
    samples: int | str = option(10, help="Calibration windows per text: a number drawn at random, or all.")
    length: int = option(128, help="Tokens per calibration window.", minimum=4)

    def __post_init__(self) -> None:
        check_options(self)
        sources = parse_sources(self.text, "text")
        if parse_samples(self.samples) is None and any(weighted.endless for weighted in sources):
            raise endless(next(weighted.source for weighted in sources if weighted.endless))

    def check(self) -> None:
        """Refuse texts that cannot be read, before a model is opened; the hub is not asked.

        Raises:
            DataError: as check_sources.
        """
        check_sources(self.text, "text")

    def of_all(self, samples: int) -> CalibrationText:
        """Return the same text with about so many windows of all its sources, but enough of each to hold some out."""
        return replace(self, samples=max(JUDGING, -(-samples // len(parse_sources(self.text)))))

    def tokens(
        self,
        tokenizer: PreTrainedTokenizerBase,
        seed: int = 0,
        *,
        at_least: int | None = None,
        written: Written | None = None,
    ) -> Tokens:
        """Read the windows; at_least, written: as in Tokens.read.

        Raises:
            DataError: as Tokens.read and parse_sources.
        """
        samples, sources = parse_samples(self.samples), parse_sources(self.text)
        how: dict[str, Any] = {"length": self.length, "seed": seed, "at_least": at_least, "written": written}
        parts = [Tokens.read(weighted.source, tokenizer, samples=samples, **how) for weighted in sources]
        if len(parts) == 1:
            return parts[0]
        return Tokens.joined(parts, [weighted.weight for weighted in sources], self.text)


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return [BOS] when the tokenizer puts it before text by itself, else []."""
    first = tokenizer("a").input_ids[:1]
    return list(first) if first and first[0] == tokenizer.bos_token_id else []


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Say whether a token id means the same to both."""
    return bool(one.get_vocab() == other.get_vocab())


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise text, without special tokens."""
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
        raise DataError(
            f"a lone surrogate at character {error.start}",
            expected="text that UTF-8 can hold",
            fix="correct or delete that record",
            where=f"text starting {text[:40]!r}",
        ) from error


@dataclass(frozen=True)
class RepairText(CalibrationText):
    """The text that closed-form repair looks at. samples: about so many windows of all its sources, see of_all()."""

    samples: int = option(256, help="Maximum windows to repair on; at least eight per text.", minimum=8)


def endless(source: str) -> DataError:
    """Make the error that all of a text is asked for which is written as it is read."""
    fix = "say how many, or name other texts"
    return DataError(f"{source}, which has no end", expected="a number of windows", fix=fix, option="samples")


def own_windows(written: Written | None, room: int, amount: int) -> list[list[int]]:
    """Cut what a model wrote into so many windows of `room` tokens, its texts one after the other, up to a full window.

    Fewer where it writes no more texts, since its time is over.
    """
    if written is None:
        raise DataError(
            "a text to be read without one",
            expected="a model that writes it",
            fix="name other texts, or pass `written`, such as OwnText(checkpoint).texts",
            where=OWN,
        )
    texts, requested = written(1), 1
    while (size := sum(map(len, texts))) < amount * room and len(texts) >= requested:
        requested = max(requested + 1, -(-requested * amount * room // max(1, size)))
        texts = written(requested)
    stream, amount = [token for text in texts for token in text], min(amount, size // room)
    return [stream[start : start + room] for start in range(0, amount * room, room)]


def made_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    amount: int,
    rng: random.Random,
    written: Written | None,
) -> tuple[Tensor, Tensor]:
    """Make windows of a source that is written as it is read, and say which of their tokens count: [amount, length] each."""
    import torch

    bos = [(token, source == OWN) for token in bos_ids(tokenizer)]
    room = length - len(bos)
    if source == OWN:
        windows = [[(token, True) for token in window] for window in own_windows(written, room, amount)]
    else:
        windows = [_filled_window(source, tokenizer, room, rng) for _ in range(amount)]
    pairs = torch.tensor([[*bos, *window] for window in windows], dtype=torch.long).view(len(windows), length, 2)
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
        raise DataError(
            f"{room} tokens",
            expected="windows that such a text fits into",
            fix="raise length, or name other texts",
            where=source,
        )
    return [*window, *text][:room]


def _marked(
    passages: Iterable[tuple[str, bool]], tokenizer: PreTrainedTokenizerBase, *, after: bool
) -> Iterator[tuple[int, bool]]:
    """Tokenise the passages; mark each token of one that what stands before it determines. after: other texts."""
    encoded = encode_after if after else encode
    for text, determined in passages:
        yield from ((token, determined) for token in encoded(tokenizer, text))
        encoded = encode_after


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


def check_enough(tokens: Tokens, fix: str, *, at_least: int = HELD_OUT) -> None:
    """Refuse samples of which none could be held out, or that are fewer than `at_least`."""
    for kind, _ in tokens.parts:
        if kind.samples < at_least:
            raise DataError(
                str(kind.samples),
                expected=f"at least {at_least} samples, since one in {at_least} is held out",
                fix=fix,
                where=kind.source,
            )


def split(tokens: Tokens, each: int = HELD_OUT) -> tuple[Tokens, Tokens]:
    """Part the samples to fit on from every fourth of each kind, which is held out; each: in place of four."""
    import torch

    held_out = torch.cat([torch.arange(kind.samples) % each == each - 1 for kind, _ in tokens.parts])
    return tokens.rows(~held_out), tokens.rows(held_out)
