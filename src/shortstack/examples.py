"""Samples to learn from: text counts whole, of instructions and chats only the responses."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.errors import DataError
from shortstack.texts import hub_records, prompt_and_response, read_documents, read_records, record_format
from shortstack.tokens import bos_ids, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One sample to learn from: token ids, and which of them count in the loss."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]


def read_examples(
    source: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 256, seed: int = 0
) -> list[Example]:
    """Samples to heal on: text is cut into windows that count whole; elsewhere only responses count.

    Samples longer than max_length are cut at its end; one with nothing left to learn is dropped.

    Raises:
        DataError: the data cannot be read, or nothing in it can be learnt from.
    """
    records = _records(source, seed)
    examples = [example for record in records for example in _examples(record, tokenizer, max_length)]
    useful = [example for example in examples if any(example.learn[1:])]
    if not useful:
        raise DataError(
            source,
            expected="samples with something to learn",
            found=f"none among {len(records)} records",
            fix="raise --max-length, or check the data",
        )
    return random.Random(seed).sample(useful, len(useful))


def _records(source: str, seed: int) -> list[Mapping[str, Any]]:
    """What a source holds, in its own format; plain text is one record."""
    if source.endswith((".json", ".jsonl")):
        return list(read_records(source))
    if source == "pydoc" or source.endswith(".txt") or Path(source).is_file():
        return [{"text": text} for text in read_documents(source)]
    return list(hub_records(source, seed))


def _examples(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    kind = record_format(record)
    bos = bos_ids(tokenizer)
    if kind == "text":
        ids, room = encode(tokenizer, str(record["text"])), max_length - len(bos)
        windows = [(*bos, *ids[start : start + room]) for start in range(0, len(ids), room)]
        return [Example(window, (True,) * len(window)) for window in windows if len(window) > 1]
    if kind == "chat":
        return [_chat_example(record["messages"], tokenizer, max_length)]
    prompt, response = prompt_and_response(record)
    start = [*bos, *encode(tokenizer, prompt)]
    answer = encode(tokenizer, response) + ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])
    learn = (False,) * len(start) + (True,) * len(answer)
    return [Example((*start, *answer)[:max_length], learn[:max_length])]


def _chat_example(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Example:
    """The conversation in the model's own template; only what the assistant says counts."""
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            "messages", expected="a tokenizer with a chat template", found="none", fix="give alpaca, dolly or text data"
        )

    def render(turns: Sequence[Mapping[str, Any]], answer: bool) -> list[int]:
        try:
            return list(
                tokenizer.apply_chat_template(
                    list(turns), add_generation_prompt=answer, tokenize=True, return_dict=False
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"messages starting {str(messages[0]['content'])[:40]!r}",
                expected="a conversation the model's chat template takes",
                found=str(error),
                fix="correct its roles and their order, or leave that conversation out",
            ) from error

    ids = render(messages, False)
    learn = [False] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            start, end = len(render(messages[:turn], True)), len(render(messages[: turn + 1], False))
            learn[start:end] = [True] * (end - start)
    return Example(tuple(ids[:max_length]), tuple(learn[:max_length]))
