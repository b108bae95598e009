"""Where text comes from, and the record formats of instruction and chat data.

A source is `pydoc` (the standard library's language reference topics; the last 20 % is held out and never calibrates), a
.txt file, a .jsonl or .json file, or a hub dataset `org/name` or `org/name:split`. Two kinds have no end and are written as
they are read: `self`, by the model, and those of IN_CONTEXT, by a seeded program.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shortstack.data.in_context import IN_CONTEXT, pydoc
from shortstack.errors import DataError, InputError, one_line
from shortstack.machine.cache import cache_directory, mark_used
from shortstack.machine.files import atomic_write
from shortstack.machine.hub import hub_or_copies

Rows = Iterable[Any] | Path  # texts, chats as lists of messages, or records, as a list or a datasets.Dataset; or a file

OWN = "self"  # what the model writes itself
PROMPT = (
    "Below is an instruction that describes a task{with_input}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{input}### Response:\n"
)  # tatsu-lab/stanford_alpaca README, the prompt the paper trains with
FORMATS = (
    "text; instruction, input, output (alpaca); instruction, context, response (dolly); messages; prompt, completion"
)

KEYS = {  # the fields of each, the first that fits counts; an instruction may have one of CONTEXT beside it
    "chat": ("messages",),
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "prompt": ("prompt", "completion"),
    "text": ("text",),  # last: tatsu-lab/alpaca has its prompt and output in a text as well
}
CONTEXT = ("input", "context")


# Texts that come along by name: function(held_out) gives the part that is held out, or the rest, which calibrates.
SOURCES: Mapping[str, Callable[[bool], str]] = {"pydoc": pydoc}

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:.+)?")  # with a split
TEXT = f"{', '.join([*SOURCES, *IN_CONTEXT])}, a .txt, .json or .jsonl file, or a hub dataset org/name."


def source_of(source: str | Rows) -> str:
    """Name a source: by itself, or by the file that rows given in memory are kept in.

    >>> source_of("pydoc")
    'pydoc'

    Raises:
        DataError: a row is neither text nor a chat nor a record of what JSON can hold, or there is none.
    """
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Mapping):  # a DatasetDict, as load_dataset() gives it
        splits = ", ".join(map(str, source))
        fix = "give one of them"
        raise DataError(f"several sets by name: {splits}", expected="rows", fix=fix, where="the data")
    if not hasattr(source, "__iter__"):
        expected, fix = (
            "a source by name, or texts, chats or records",
            "give a list of texts, or a name such as 'pydoc'",
        )
        raise DataError(f"a {type(source).__name__}, {source!r}"[:80], expected=expected, fix=fix, where="the data")
    lines = [_line(row, number) for number, row in enumerate(source)]
    if not lines:
        raise DataError("none", expected="texts, chats or records", fix="give some", where="the data")
    content = "".join(f"{line}\n" for line in lines)
    path = cache_directory("data") / f"{hashlib.sha256(content.encode()).hexdigest()}.jsonl"
    if path.is_file():
        mark_used(path)
    else:
        with atomic_write(path) as partial:
            partial.write_text(content, encoding="utf-8")
    return str(path)


def _line(row: Any, number: int) -> str:
    record = _record(row)
    try:
        if record is not None:
            return json.dumps(record)  # half a character is refused where it is read
        actual, fix = f"{row!r}"[:80], "give rows of one of these kinds"
    except TypeError as error:  # an image, a date
        actual, fix = str(error), "leave that column out"
    expected = "a text, a chat (a list of messages with role and content), or a record"
    raise DataError(actual, expected=expected, fix=fix, where=f"the data, row {number}")


def _record(row: Any) -> Mapping[str, Any] | None:
    """Put a row in one of the formats that files have; None where it is in none of them."""
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, Mapping):
        return dict(row)
    chat = {"messages": row}
    return chat if record_format(chat) else None


def public_name(source: str) -> str:
    """Name a source as others may see it: a file or a folder without its place, anything else as it is.

    >>> public_name("self"), public_name("/home/me/chats.jsonl"), public_name("org/set:train")
    ('self', 'chats.jsonl', 'org/set:train')
    """
    local = bool(_suffix(source)) or os.path.exists(source) or not HUB_NAME.fullmatch(source)
    return Path(source).name if local and source not in (*SOURCES, *IN_CONTEXT, OWN) else source


def parse_samples(samples: str | int) -> int | None:
    """Read how many windows of a text are meant: a number, or None for "all"."""
    if samples == "all":
        return None
    if not str(samples).isdecimal() or not int(samples):
        raise InputError(
            repr(str(samples)),
            expected="a number of windows, or all",
            fix="write a number, such as 10",
            option="samples",
        )
    return int(samples)


def check_source(source: str, known: str = f"{OWN}, mix, {TEXT}", *, option: str = "") -> None:
    """Refuse a source that is none, or a file that cannot be read, before minutes of work; the hub is not asked.

    known: what there is, for the message; option: what named the source.
    """
    if source in SOURCES:
        return
    if _suffix(source) or os.path.isfile(source):
        try:
            Path(source).open("rb").close()
        except OSError as error:
            raise _unreadable(Path(source), error).but(option=option) from error
    else:
        _check_hub_name(source, known, option)


def _suffix(source: str) -> str:
    """Return the ending of a file of a known format, however it is written; empty for any other name."""
    suffix = os.path.splitext(source)[1].lower()
    return suffix if suffix in (".txt", ".json", ".jsonl") else ""


def read_records(source: str, *, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Read the records of a source, each in one of FORMATS; plain text is one record. Shuffle rows of the hub by seed.

    held_out: of a built-in source, the last 20 % instead of the first 80 %.
    """
    if source in SOURCES:
        yield {"text": SOURCES[source](held_out)}
    elif _suffix(source) == ".jsonl":
        yield from (_checked(value, where) for where, value in read_lines(Path(source)))
    elif _suffix(source) == ".json":
        yield from _entries(Path(source))
    elif _suffix(source) == ".txt" or os.path.isfile(source):
        yield {"text": _read_text(Path(source))}
    else:
        yield from hub_records(source, seed)


def read_documents(source: str, *, seed: int = 0, held_out: bool = False) -> Iterator[str]:
    """Read the texts of a source, shuffled by seed when there are several; records of other formats give all their text."""
    return map(_all_text, shuffled_records(source, seed=seed, held_out=held_out))


def shuffled_records(source: str, *, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Read records in an order drawn by seed: of a file all are read first, of the hub as many as are asked for."""
    records = read_records(source, seed=seed, held_out=held_out)
    if _suffix(source) not in (".json", ".jsonl"):
        return records
    listed = list(records)
    return iter(random.Random(seed).sample(listed, len(listed)))


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.object[error.start]:#x} at position {error.start}",
            expected="UTF-8 text",
            fix="convert it to UTF-8",
            where=path,
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if not text.strip():
        raise DataError(
            "nothing but white space" if text else "an empty file",
            expected="text",
            fix="give a file with text",
            where=path,
        )
    return text


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(error.strerror or str(error), expected="a file that can be read", fix="check the path", where=path)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a .json file, which holds a list of them."""
    text, expected, fix = _read_text(path), "a JSON list of objects", "correct it, or save it as .jsonl"
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(error, expected=expected, fix=fix, where=path) from error
    if not isinstance(entries, list):
        raise DataError(f"a {type(entries).__name__}", expected=expected, fix=fix, where=path)
    for number, entry in enumerate(entries, start=1):
        yield _checked(entry, f"{path}, entry {number}")


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each line of a .jsonl file is, for messages, and its value."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):  # splitlines also cuts at U+2028, unlike JSON
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            quote = f"{line[:60]!r} ({error})"
            raise DataError(quote, expected="a JSON object", fix="correct or delete that line", where=where) from error


def _checked(record: Any, where: str) -> dict[str, Any]:
    """Check a record, and return it without its null fields, which count as absent."""
    given = {key: value for key, value in record.items() if value is not None} if isinstance(record, dict) else {}
    if record_format(given) is None:
        raise DataError(
            _of_no_format(record, given),
            expected=f"an object with the keys of one format: {FORMATS}",
            fix="rename the keys; texts are strings, messages a list of {role, content}",
            where=where,
        )
    return given


def _of_no_format(record: Any, given: Mapping[str, Any]) -> str:
    """Describe a record of no known format for an error: its first field of a wrong type, or its keys."""
    if not isinstance(record, dict):
        return repr(record)[:60]
    wrong = [key for name, keys in KEYS.items() if given.keys() >= set(keys) for key in _wrong(given, name)]
    if not wrong:
        return f"keys {', '.join(key if key in given else f'{key} (null)' for key in record)}"
    value = given[wrong[0]]
    turns = [turn for turn in value if not _is_turn(turn)] if wrong[0] == "messages" and isinstance(value, list) else []
    return f"{wrong[0]}: {(turns or [value])[0]!r}"[:80]


def record_format(record: Mapping[str, Any]) -> str | None:
    """Find the first of KEYS whose fields a record has, each of the type that it should be; None when none."""
    return next((name for name, keys in KEYS.items() if record.keys() >= set(keys) and not _wrong(record, name)), None)


def _wrong(record: Mapping[str, Any], name: str) -> list[str]:
    """List a record's fields of a format that are not of the type they should be: a text, or of messages a list of turns."""
    keys = [key for key in (*KEYS[name], *(CONTEXT if "instruction" in KEYS[name] else ())) if key in record]
    return [key for key in keys if not (_is_chat if key == "messages" else _is_text)(record[key])]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


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


def hub_records(source: str, seed: int) -> Iterator[dict[str, Any]]:
    """Stream the rows of a hub dataset, shuffled by seed in a buffer of a thousand rows."""
    name, split = _check_hub_name(source)
    import datasets

    with hub_or_copies() as reachable:
        try:
            rows = datasets.load_dataset(name, split=split or "train", streaming=True).shuffle(seed=seed)
            for number, row in enumerate(rows, start=1):
                yield _checked(row, f"{source}, row {number}")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = one_line(error) if reachable else "no hub within reach, and no copy of it here"
            expected, fix = "a dataset on the hub", "check the name, or give a local file"
            raise DataError(reason, expected=expected, fix=fix, where=source) from error


def _check_hub_name(source: str, known: str = TEXT, option: str = "") -> tuple[str, str]:
    """Part the name of a hub dataset from the split that was named, or none; known: what else could have been meant."""
    name, _, split = source.partition(":")
    if "/" not in name or name.startswith((".", "/", "~")):
        near = difflib.get_close_matches(name, filter(str.isalpha, known.split(", ")), 1)
        fix = f"did you mean {near[0]}?" if near else "check the name or the path"
        raise DataError("none of these", expected=known.rstrip("."), fix=fix, option=option, where=source)
    return name, split


def prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
    """Render the prompt by the paper's data template, and return it with the response to learn."""
    kind = record_format(record)
    if kind == "prompt":
        return str(record["prompt"]), str(record["completion"])
    extra = str(record.get("input") or record.get("context") or "")
    prompt = PROMPT.format(
        with_input=", paired with an input that provides further context" if extra else "",
        instruction=record["instruction"],
        input=f"### Input:\n{extra}\n\n" if extra else "",
    )
    return prompt, str(record["output"] if kind == "alpaca" else record["response"])
