"""Text in, token windows out; and the instruction and chat formats that healing learns from.

TEXT is `pydoc` (the standard library's language reference topics; the last 20 % is held out and never calibrates), a .txt
file, a .jsonl or .json file, or a hub dataset `org/name` or `org/name:split`.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

HELD_OUT_SHARE = 0.2
PROMPT = (
    "Below is an instruction that describes a task{with_input}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{input}### Response:\n"
)  # tatsu-lab/stanford_alpaca README, the prompt the paper trains with
FORMATS = (
    "text; instruction, input, output (alpaca); instruction, context, response (dolly); messages; prompt, completion"
)


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
    ) -> Tokens:
        """`samples` random windows of `length` tokens (BOS included), or with None every window, in order.

        Windows never overlap and never cross documents. With several documents each gives one window at a random place,
        as in the paper; a document shorter than a window is passed over. BOS is added where the tokenizer itself adds it.
        held_out: of `pydoc`, read the last 20 % instead of the first 80 %.

        Raises:
            DataError: no such text, not UTF-8, a wrong line, or fewer windows than asked for.
        """
        import torch

        bos = bos_ids(tokenizer)
        room = length - len(bos)
        documents = (encode(tokenizer, text) for text in read_documents(source, seed=seed, held_out=held_out))
        windows = [[*bos, *window] for window in _windows(documents, room, samples, seed)]
        if not windows or (samples and len(windows) < samples):
            raise DataError(
                source,
                expected=f"{samples or 1} windows of {length} tokens",
                found=f"text for {len(windows)}",
                fix="give more text, or a smaller --samples or --length",
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
class Example:
    """One sample to learn from: token ids, and which of them count in the loss."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] when the tokenizer puts it before text by itself, else []."""
    first = tokenizer("a").input_ids[:1]
    return list(first) if first and first[0] == tokenizer.bos_token_id else []


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text without special tokens."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _windows(documents: Iterator[list[int]], room: int, samples: int | None, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    found: list[list[int]] = []
    whole: list[int] | None = None
    for count, ids in enumerate(documents):
        whole = ids if count == 0 else None
        if samples is None:
            found += [ids[start : start + room] for start in range(0, len(ids) - room + 1, room)]
        elif len(ids) >= room:
            start = rng.randrange(len(ids) - room + 1)
            found.append(ids[start : start + room])
        if samples and count and len(found) >= samples:
            return found[:samples]
    if samples and whole is not None:  # a single document: all windows come from it
        starts = range(0, len(whole) - room + 1, room)
        return [whole[start : start + room] for start in sorted(rng.sample(starts, min(samples, len(starts))))]
    return found


def read_documents(source: str, *, seed: int = 0, held_out: bool = False) -> Iterator[str]:
    """The texts of a source, shuffled by seed when there are several; lines of other formats give all their text."""
    if source == "pydoc":
        yield _pydoc(held_out)
    elif source.endswith((".json", ".jsonl")):
        yield from _shuffled([_all_text(record) for record in read_records(source)], seed)
    elif Path(source).is_file() or source.endswith(".txt"):
        yield _read_text(Path(source))
    else:
        yield from (_all_text(record) for record in _hub_records(source, seed))


def _shuffled(texts: list[str], seed: int) -> list[str]:
    return random.Random(seed).sample(texts, len(texts))


def _pydoc(held_out: bool) -> str:
    """The standard library's reference topics, each paragraph once: topics quote each other, and would leak otherwise."""
    from pydoc_data import topics

    texts = "\n\n".join(topics.topics[name].strip() for name in sorted(topics.topics))
    paragraphs = list(dict.fromkeys(texts.split("\n\n")))
    ends = list(itertools.accumulate(map(len, paragraphs)))
    first = bisect.bisect_left(ends, (1 - HELD_OUT_SHARE) * ends[-1]) + 1
    return "\n\n".join(paragraphs[first:] if held_out else paragraphs[:first])


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            path,
            expected="UTF-8 text",
            found=f"byte {error.object[error.start]:#x} at position {error.start}",
            fix="convert it to UTF-8",
        ) from error
    except OSError as error:
        raise DataError(
            path, expected="a text file", found=error.strerror or str(error), fix="check the path"
        ) from error
    if not text.strip():
        raise DataError(path, expected="text", found="an empty file", fix="give a file with text")
    return text


def read_records(source: str) -> list[dict[str, Any]]:
    """The objects of a .jsonl file (one a line) or a .json file (a list).

    Raises:
        DataError: a line that is not an object of a known format; its number is named.
    """
    path = Path(source)
    text = _read_text(path)
    if path.suffix == ".json":
        try:
            rows = list(enumerate(_as_list(json.loads(text)), start=1))
        except (ValueError, RecursionError) as error:
            raise DataError(
                path, expected="a JSON list of objects", found=str(error), fix="correct it, or save it as .jsonl"
            ) from error
        return [_checked(row, f"{path}, entry {number}") for number, row in rows]
    return [
        _checked(_parse(line, f"{path}, line {number}"), f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)  # splitlines also cuts at U+2028, which JSON allows
        if line.strip()
    ]


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a {type(value).__name__}")  # noqa: TRY004  caught with json's own ValueError
    return value


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            where, expected="a JSON object", found=f"{line[:60]!r} ({error})", fix="correct or delete that line"
        ) from error


def _checked(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict) or record_format(record) is None:
        found = f"keys {', '.join(record)}" if isinstance(record, dict) else repr(record)[:60]
        raise DataError(
            where, expected=f"an object with the keys of one format: {FORMATS}", found=found, fix="rename the keys"
        )
    return record


def record_format(record: Mapping[str, Any]) -> str | None:
    """Which of FORMATS a record has: text, alpaca, dolly, chat, prompt; None when none."""

    def texts(*keys: str) -> bool:
        return all(isinstance(record.get(key), str) for key in keys)

    messages = record.get("messages")
    if isinstance(messages, list) and messages and all(_is_turn(turn) for turn in messages):
        return "chat"
    for name, keys in (
        ("text", ("text",)),
        ("alpaca", ("instruction", "output")),
        ("dolly", ("instruction", "response")),
        ("prompt", ("prompt", "completion")),
    ):
        if texts(*keys):
            return name
    return None


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _all_text(record: Mapping[str, Any]) -> str:
    kind = record_format(record)
    if kind == "text":
        return str(record["text"])
    if kind == "chat":
        return "\n\n".join(str(turn["content"]) for turn in record["messages"])
    prompt, response = prompt_and_response(record)
    return prompt + response


def _hub_records(source: str, seed: int) -> Iterator[dict[str, Any]]:
    import datasets

    name, _, split = source.partition(":")
    if "/" not in name or name.startswith((".", "/", "~")):
        raise DataError(
            source,
            expected="pydoc, a .txt, .json or .jsonl file, or a hub dataset org/name",
            found="none of these",
            fix="check the path",
        )
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True).shuffle(seed=seed)
        for number, row in enumerate(rows, start=1):
            yield _checked(row, f"{source}, row {number}")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            source,
            expected="a dataset on the hub",
            found=" ".join(str(error).split())[:200],
            fix="check the name, or give a local file",
        ) from error


def prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt as the paper's data template renders it, and the response to learn."""
    if record_format(record) == "prompt":
        return str(record["prompt"]), str(record["completion"])
    extra = str(record.get("input") or record.get("context") or "")
    prompt = PROMPT.format(
        with_input=", paired with an input that provides further context" if extra else "",
        instruction=record["instruction"],
        input=f"### Input:\n{extra}\n\n" if extra else "",
    )
    return prompt, str(record["output"] if "output" in record else record["response"])


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
    return list(_hub_records(source, seed))


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
