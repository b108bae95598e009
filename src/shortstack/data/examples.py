"""Samples to learn from: text counts whole, of instructions and chats only the responses."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from shortstack.data.mixture import Weighted, Written, parse_sources
from shortstack.data.sources import prompt_and_response, read_records, record_format, shuffled_records
from shortstack.data.tokens import bos_ids, check_text, encode, encode_after, made_windows
from shortstack.errors import DataError, ShortstackWarning
from shortstack.machine.numbers import is_share, part_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Conversation = Sequence["Example"]  # samples that stay together: of one conversation; of all else each by itself
ENDLESS_SAMPLES = 512  # where nothing says how many


@dataclass(frozen=True)
class Example:
    """One sample to learn from: token ids, and which of them count in the loss.

    follows: it is of the same conversation as the sample before it. made: a program or a model wrote it.
    """

    ids: tuple[int, ...]
    learn: tuple[bool, ...]
    follows: bool = False
    made: bool = False


def read_examples(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 256,
    seed: int = 0,
    most: float | None = None,
    written: Written | None = None,
) -> list[Example]:
    """Read samples to heal on, shuffled: text is cut into windows that count whole; elsewhere only responses count.

    Samples longer than max_length are cut at its end; one with nothing left to learn is dropped. Of several sources each
    gives a part of the samples by its weight, as many as the one that has least allows. Samples of one conversation follow
    each other. most: not more than so many in all, from no more records than that, which are drawn by the seed before any is
    tokenised; a float is a share of all. written: for `self`, gives texts that the model wrote.
    """
    rng = random.Random(seed)
    read, wanted, _ = shared_out(source, tokenizer, max_length, seed, most)
    if most is None and len(wanted) > 1 and sum(wanted.values()) < ENDLESS_SAMPLES:
        _warn_of_few(source, read, wanted)
    for name, amount in wanted.items():
        if name not in read:
            read[name] = [[made] for made in _made(name, amount, tokenizer, max_length, seed, written)]
    if len(wanted) == 1:
        (only,) = read.values()
        return [*chain.from_iterable(rng.sample(only, len(only)))][: sum(wanted.values())]
    drawn = {name: rng.sample(read[name], min(amount, len(read[name]))) for name, amount in wanted.items()}
    chosen = [part for name, amount in wanted.items() for part in _first(drawn[name], amount)]
    return [*chain.from_iterable(rng.sample(chosen, len(chosen)))]


def _warn_of_few(source: str, read: Mapping[str, Sequence[Conversation]], wanted: Mapping[str, int]) -> None:
    """Say which source is so short that the others give little."""
    sizes = {name: sum(map(len, parts)) for name, parts in read.items()}
    weights = {weighted.source: weighted.weight for weighted in parse_sources(source)}
    shortest = min(sizes, key=lambda name: sizes[name] / weights[name], default=None)
    if shortest is not None:
        found = f"{shortest} has {sizes[shortest]} samples, so that all sources together give {sum(wanted.values())}"
        warnings.warn(f"{found}; add to it, or give it less weight", ShortstackWarning, stacklevel=3)


def _first(parts: Sequence[Conversation], amount: int) -> Iterator[Conversation]:
    """Yield so many examples of the parts, the last of which may be cut."""
    for part in parts:
        if amount > 0:
            yield part[:amount]
        amount -= len(part)


def shared_out(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
    most: float | None,
    *,
    tokens: float = math.inf,
) -> tuple[dict[str, list[Conversation]], dict[str, int], bool]:
    """Read the samples of the sources that have an end, and share out how many each source gives.

    tokens: of each source no more are read than hold so many. Say, too, whether each was read to its end.
    """
    sources = parse_sources(source)
    whole = sum(weighted.weight for weighted in sources)
    found = {
        weighted.source: _read(
            weighted.source,
            tokenizer,
            max_length,
            seed,
            None if most is None or is_share(most) else math.ceil(most * weighted.weight / whole),
            tokens,
        )
        for weighted in sources
        if not weighted.endless
    }
    read, ended = {name: samples for name, (samples, _) in found.items()}, all(ended for _, ended in found.values())
    return read, shares(sources, {name: sum(map(len, parts)) for name, parts in read.items()}, most), ended


def shares(sources: Sequence[Weighted], sizes: Mapping[str, int], most: float | None) -> dict[str, int]:
    """Share samples out to the sources by their weights.

    sizes: of those that have an end. most: in all; a float: a share.

    >>> shares([Weighted("a.txt"), Weighted("self", 0.5)], {"a.txt": 100}, most=None)
    {'a.txt': 100, 'self': 50}
    >>> shares([Weighted("a.txt"), Weighted("self", 0.5)], {"a.txt": 100}, most=60)
    {'a.txt': 40, 'self': 20}
    >>> shares([Weighted("a.txt"), Weighted("self", 0.5)], {"a.txt": 100}, most=0.1)
    {'a.txt': 10, 'self': 5}
    """
    if most is not None and is_share(most):
        most = part_of(most, sum(shares(sources, sizes, None).values()))
    if most is not None and most < len(sources):
        raise DataError(
            f"{most:g} in all",
            expected=f"at least one sample of each of {len(sources)} sources",
            fix="allow more, or name fewer sources",
            option="max_samples",
        )
    whole = sum(weighted.weight for weighted in sources)
    bounds = [sizes[weighted.source] / weighted.weight for weighted in sources if weighted.source in sizes]
    unit = min([*bounds, *([most / whole] if most else [])], default=ENDLESS_SAMPLES / whole)
    amounts = {weighted.source: max(1, round(unit * weighted.weight)) for weighted in sources}
    while most is not None and sum(amounts.values()) > most:
        amounts[max(amounts, key=amounts.__getitem__)] -= 1
    return amounts


def _read(
    source: str, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int, most: int | None, tokens: float
) -> tuple[list[Conversation], bool]:
    """Read the samples of a source that has an end; most: of so many records with something to learn, drawn by the seed.

    tokens: what lies behind so many of them is not read. Say, too, whether there was nothing more.
    """
    records, samples, length, ended = 0, list[Conversation](), 0, True

    def useful() -> Iterator[list[Conversation]]:
        nonlocal records
        in_order = most is None and math.isinf(tokens)  # else those that are read stand for all
        for record in (read_records if in_order else shuffled_records)(source, seed=seed):
            records += 1
            if parts := _useful(_examples(record, tokenizer, max_length), chat=record_format(record) == "chat"):
                yield parts

    for parts in islice(useful(), most):
        if length > tokens:
            ended = False
            break
        samples += parts
        length += sum(len(example.ids) for part in parts for example in part)
    if not samples:
        raise DataError(
            f"none among {records} records: what is left of each is one token, or a prompt alone",
            expected="samples with something to learn",
            fix="raise max_length, or check the data",
            where=source,
        )
    return samples, ended


def _useful(examples: Sequence[Example], *, chat: bool) -> list[Conversation]:
    """Keep those of a record's samples that have something to learn; all of a chat together, others one by one."""
    useful = [example for example in examples if any(example.learn[1:])]
    if chat and useful:
        return [[useful[0], *(replace(example, follows=True) for example in useful[1:])]]
    return [[example] for example in useful]


def _made(
    source: str,
    amount: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
    written: Written | None,
) -> list[Example]:
    """Make so many samples of a source that is written as it is read."""
    rng = random.Random(f"{seed} {source} to learn")  # other texts than those that calibrate
    windows = made_windows(source, tokenizer, max_length, amount, rng, written)
    pairs = zip(*(part.tolist() for part in windows), strict=True)
    return [Example(tuple(ids), tuple(learn), made=True) for ids, learn in pairs]


def _examples(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    kind = record_format(record)
    bos = bos_ids(tokenizer)
    if kind == "text":
        ids, room = encode(tokenizer, str(record["text"])), max_length - len(bos)
        windows = [(*bos, *ids[start : start + room]) for start in range(0, len(ids), room)]
        return [Example(window, (True,) * len(window)) for window in windows if len(window) > 1]
    if kind == "chat":
        return _chat_examples(record["messages"], tokenizer, max_length)
    prompt, response = prompt_and_response(record)
    start = [*bos, *encode(tokenizer, prompt)]
    answer = encode_after(tokenizer, response) + (
        [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    )
    learn = (False,) * len(start) + (True,) * len(answer)
    return [Example((*start, *answer)[:max_length], learn[:max_length])]


def _chat_examples(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    """Render the conversation in the model's own template; only what the assistant says counts.

    One sample, where the template renders every turn as it renders it last. Where it does not (some drop what earlier turns
    thought), a sample for each answer, each with the conversation up to it.
    """
    answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return []
    whole = render(messages, tokenizer)
    spans = [_answer_span(messages[: turn + 1], tokenizer) for turn in answers]
    if all(whole.startswith(text) for text, _ in spans):
        return [_learning(whole, [(start, len(text)) for text, start in spans], tokenizer, max_length)]
    return [_learning(text, [(start, len(text))], tokenizer, max_length) for text, start in spans]


def _answer_span(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """Render a conversation that ends with an answer; return it with the character at which the answer starts."""
    prompt, text = render(messages[:-1], tokenizer, answer=True), render(messages, tokenizer)
    if not text.startswith(prompt):
        raise DataError(
            "one that renders the prompt differently once it is answered",
            expected="a chat template that renders a conversation as its prompt and then the answer",
            fix="give prompt and completion records instead of messages",
            where=_place(messages),
        )
    return text, len(prompt)


def _learning(
    text: str, spans: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Example:
    """Tokenise the text; the tokens that begin in one of the spans of characters count."""
    if not tokenizer.is_fast:
        raise DataError(
            type(tokenizer).__name__,
            expected="a tokenizer that says which characters a token is of (tokenizer.json)",
            fix="give prompt and completion records instead of messages",
            where="messages",
        )
    check_text(text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learn = tuple(any(start <= begin < end for start, end in spans) for begin, _ in encoded["offset_mapping"])
    return Example(tuple(encoded["input_ids"][:max_length]), learn[:max_length])


def render(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, answer: bool = False) -> str:
    """Render the conversation by the tokenizer's chat template; answer: with what opens the next answer."""
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            "none", expected="a tokenizer with a chat template", fix="give alpaca, dolly or text data", where="messages"
        )
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer, tokenize=False))
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            str(error) or type(error).__name__,
            expected="a conversation the model's chat template takes",
            fix="correct its roles and their order, or leave that conversation out",
            where=_place(messages),
        ) from error


def _place(messages: Sequence[Mapping[str, Any]]) -> str:
    return f"messages starting {str(messages[0]['content'])[:40]!r}" if messages else "messages"
