"""Samples to learn from: text counts whole, of instructions and chats only the responses."""

from __future__ import annotations

import functools
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from shortstack.data.sources import (
    OWN,
    is_prose,
    prompt_and_response,
    read_records,
    record_format,
    shuffled_records,
    source_files,
)
from shortstack.data.text import Source, Text
from shortstack.data.tokens import SPREAD, Settings, bos_ids, check_text, encode, encode_after, made_windows
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


def read_examples(text: Text, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> list[Example]:
    """Read samples to heal on, shuffled: text is cut into windows that count whole; elsewhere only responses count.

    text.samples: at most this many in all, or a share; of a file they are drawn by the seed before any is tokenised.
    Samples longer than text.length are cut at its end; one with nothing left to learn is dropped. Of several sources each
    gives a part of the samples by its weight, as many as the one that has least allows. Samples of one conversation follow
    each other.
    """
    rng = random.Random(seed)
    read, wanted = shared_out(text, tokenizer, seed)
    total = sum(wanted.values())
    if text.samples is None and read and len(wanted) > 1 and total < ENDLESS_SAMPLES:
        few = f"{text.name} give {total} samples, as many as the shortest allows"
        warnings.warn(f"{few}; add to it, or give it less weight", ShortstackWarning, stacklevel=2)
    for name, amount in wanted.items():
        if name not in read:
            read[name] = [[made] for made in _made(name, amount, tokenizer, text.length, seed)]
    if len(wanted) == 1:
        (only,) = read.values()
        return [*chain.from_iterable(rng.sample(only, len(only)))][:total]
    drawn = {name: rng.sample(read[name], min(amount, len(read[name]))) for name, amount in wanted.items()}
    chosen = [part for name, amount in wanted.items() for part in _first(drawn[name], amount)]
    return [*chain.from_iterable(rng.sample(chosen, len(chosen)))]


def own_samples(text: Text, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> int:
    """Return how many samples of a text the base model is to write."""
    return shared_out(text, tokenizer, seed)[1].get(OWN, 0) if text.own else 0


def _first(parts: Sequence[Conversation], amount: int) -> Iterator[Conversation]:
    """Yield the first examples of the parts, the last of which may be cut."""
    for part in parts:
        if amount > 0:
            yield part[:amount]
        amount -= len(part)


def shared_out(
    text: Text, tokenizer: PreTrainedTokenizerBase, seed: int, *, tokens: float = math.inf
) -> tuple[dict[str, Sequence[Conversation]], dict[str, int]]:
    """Read the samples of the sources that have an end, and share out how many each source gives.

    tokens: of each source no more are read than hold this many.
    """
    most, whole = text.samples, sum(source.weight for source in text.sources)
    read, settings = dict[str, Sequence[Conversation]](), Settings.of(tokenizer)
    for source in text.sources:
        if not source.endless:
            records = None if most is None or is_share(most) else math.ceil(most * source.weight / whole)
            stats = [path.stat() for path in source_files(source.name) if path.exists()]
            stamps = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
            read[source.name] = _read(source.name, stamps, settings, text.length, seed, records, tokens)
    return read, shares(text.sources, {name: sum(map(len, parts)) for name, parts in read.items()}, most)


def shares(sources: Sequence[Source], sizes: Mapping[str, int], most: float | None) -> dict[str, int]:
    """Share samples out to the sources by their weights.

    sizes: of those that have an end. most: in all; a float: a share.

    >>> shares([Source("a.txt"), Source("self", 0.5)], {"a.txt": 100}, most=None)
    {'a.txt': 100, 'self': 50}
    >>> shares([Source("a.txt"), Source("self", 0.5)], {"a.txt": 100}, most=60)
    {'a.txt': 40, 'self': 20}
    >>> shares([Source("a.txt"), Source("self", 0.5)], {"a.txt": 100}, most=0.1)
    {'a.txt': 10, 'self': 5}
    """
    if most is not None and is_share(most):
        most = part_of(most, sum(shares(sources, sizes, None).values()))
    if most is not None and most < len(sources):
        raise DataError(f"{most:g} samples of {len(sources)} sources; allow more, or name fewer", option="max_samples")
    whole = sum(source.weight for source in sources)
    bounds = [sizes[source.name] / source.weight for source in sources if source.name in sizes]
    unit = min([*bounds, *([most / whole] if most else [])], default=ENDLESS_SAMPLES / whole)
    amounts = {source.name: max(1, round(unit * source.weight)) for source in sources}
    while most is not None and sum(amounts.values()) > most:
        amounts[max(amounts, key=amounts.__getitem__)] -= 1
    return amounts


@functools.lru_cache(maxsize=4)
def _read(
    name: str,
    _stamps: tuple[tuple[int, int], ...],
    settings: Settings,
    length: int,
    seed: int,
    most: int | None,
    tokens: float,
) -> Sequence[Conversation]:
    """Read the samples of a source that has an end, of at most `most` records with something to learn, drawn by the seed.

    stamps: of its files. tokens: what lies behind that many is not read.
    """
    samples, size = list[Conversation](), 0
    enough = SPREAD * most if most is not None and is_prose(name) else math.inf
    in_order = most is None and math.isinf(tokens)  # else those that are read stand for all
    records = (read_records if in_order else shuffled_records)(name, seed=seed)
    read = (_conversations(record, settings.tokenizer, length) for record in records)
    for parts in islice(filter(None, read), most):
        if size > tokens or len(samples) >= enough:
            break
        samples += parts
        size += sum(len(example.ids) for part in parts for example in part)
    if not samples:
        raise DataError(f"{name}: no record has a response within {length} tokens; raise max_length")
    return samples


def _conversations(
    record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, length: int
) -> Sequence[Conversation]:
    """Return a record's samples that have something to learn; all of a chat together, others one by one."""
    useful = [example for example in _examples(record, tokenizer, length) if any(example.learn[1:])]
    if useful and record_format(record) == "chat":
        return [[useful[0], *(replace(example, follows=True) for example in useful[1:])]]
    return [[example] for example in useful]


def _made(name: str, amount: int, tokenizer: PreTrainedTokenizerBase, length: int, seed: int) -> list[Example]:
    """Make samples of a source that is written as it is read."""
    rng = random.Random(f"{seed} {name} to learn")  # other texts than those that calibrate
    pairs = zip(*(part.tolist() for part in made_windows(name, tokenizer, length, amount, rng)), strict=True)
    return [Example(tuple(ids), tuple(learn), made=True) for ids, learn in pairs]


def _examples(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    kind, bos = record_format(record), bos_ids(tokenizer)
    if kind == "text":
        ids, room = encode(tokenizer, str(record["text"])), length - len(bos)
        windows = [(*bos, *ids[start : start + room]) for start in range(0, len(ids), room)]
        return [Example(window, (True,) * len(window)) for window in windows if len(window) > 1]
    if kind == "chat":
        return _chat_examples(record["messages"], tokenizer, length)
    prompt, response = prompt_and_response(record)
    start, end = [*bos, *encode(tokenizer, prompt)], tokenizer.eos_token_id
    answer = encode_after(tokenizer, response) + ([end] if end is not None else [])
    learn = (False,) * len(start) + (True,) * len(answer)
    return [Example((*start, *answer)[:length], learn[:length])]


def _chat_examples(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[Example]:
    """Render the conversation in the model's own template; only the assistant's turns count.

    One sample, where the template renders every turn as it renders it last. Where it does not (some drop what earlier turns
    thought), a sample for each answer, each with the conversation up to it.
    """
    answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return []
    whole = render(messages, tokenizer)
    spans = [_answer_span(messages[: turn + 1], tokenizer) for turn in answers]
    if all(whole.startswith(text) for text, _ in spans):
        return [_learning(whole, [(start, len(text)) for text, start in spans], tokenizer, length)]
    return [_learning(text, [(start, len(text))], tokenizer, length) for text, start in spans]


def _answer_span(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """Render a conversation that ends with an answer; return it with the character at which the answer starts."""
    prompt, text = render(messages[:-1], tokenizer, answer=True), render(messages, tokenizer)
    if not text.startswith(prompt):
        reason = "the chat template renders the prompt differently once it is answered"
        raise DataError(f"{_place(messages)}: {reason}; give prompt and completion records")
    return text, len(prompt)


def _learning(text: str, spans: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, length: int) -> Example:
    """Tokenise the text; the tokens that begin in one of the spans of characters count."""
    if not tokenizer.is_fast:
        raise DataError("messages need a fast tokenizer (tokenizer.json); give prompt and completion records")
    check_text(text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learn = tuple(any(start <= begin < end for start, end in spans) for begin, _ in encoded["offset_mapping"])
    return Example(tuple(encoded["input_ids"][:length]), learn[:length])


def render(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, answer: bool = False) -> str:
    """Render the conversation by the tokenizer's chat template; answer: with what opens the next answer."""
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise DataError("messages need a tokenizer with a chat template; give instructions or text")
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer, tokenize=False))
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{_place(messages)}: the chat template refuses it: {reason}; correct its roles") from error


def _place(messages: Sequence[Mapping[str, Any]]) -> str:
    return f"messages starting {str(messages[0]['content'])[:40]!r}" if messages else "messages"
