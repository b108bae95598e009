"""Where text comes from, and the record formats of instruction and chat data.

A source is a built-in text such as `pydoc` (the standard library's reference topics; the last 20 % is held out and never
calibrates), a .txt, .json or .jsonl file, a folder of them, or a hub dataset `org/name`, `org/name@revision` or
`org/name:split`. `self`, which the base model writes, and those of IN_CONTEXT, which a seeded program writes, have no end.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from shortstack.data.in_context import IN_CONTEXT, pydoc, words
from shortstack.errors import DataError, one_line
from shortstack.machine.cache import cache_directory, mark_used
from shortstack.machine.files import atomic_write, digest, file_digest
from shortstack.machine.hub import hub_or_copies

OWN = "self"  # what the base model writes
PROMPT = (
    "Below is an instruction that describes a task{with_input}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{input}### Response:\n"
)  # tatsu-lab/stanford_alpaca README, the prompt the paper trains with
FORMATS = "messages, instruction and output (or response), prompt and completion, or text"
KEYS = {  # the fields of each, the first that fits counts; an instruction may have one of CONTEXT beside it
    "chat": ("messages",),
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "prompt": ("prompt", "completion"),
    "text": ("text",),  # last: tatsu-lab/alpaca has its prompt and output in a text as well
}
CONTEXT = ("input", "context")
LARGE, PIECE = 4 << 20, 64 << 10  # bytes: a text file beyond LARGE is read in pieces, as many as are needed
LINE = 4096  # bytes in which a piece looks for the end of a line
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.@-]+(:.+)?")  # with a revision or a split

# Built-in texts by name: function(held_out) gives the part that is held out, or the rest, which calibrates.
SOURCES: Mapping[str, Callable[[bool], str]] = {"pydoc": pydoc}

NAMES = f"{', '.join([*SOURCES, *IN_CONTEXT])}, a .txt, .json or .jsonl file or folder, or a hub dataset org/name"


def is_endless(name: str) -> bool:
    """Return True if the source is written as it is read, so that it has no end."""
    return name == OWN or name in IN_CONTEXT or is_own(name)


def own_file(key: str) -> Path:
    """Return the file of the cache for what a base model writes."""
    return cache_directory("own-texts") / f"{key}.jsonl"


def is_own(name: str) -> bool:
    """Return True for a file of what a base model wrote, as token ids."""
    return Path(name).parent == own_file("").parent


def label(name: str) -> str:
    """Return the name of a source, without the cache's folder."""
    if is_own(name):
        return OWN
    return f"rows-{Path(name).stem[:8]}" if Path(name).parent == cache_directory("data") else name


def public_name(name: str) -> str:
    """Return the name of a source as others may see it: of a file or a folder without its place.

    >>> public_name("self"), public_name("/home/me/chats.jsonl"), public_name("org/set:train")
    ('self', 'chats.jsonl', 'org/set:train')
    """
    name = label(name)
    local = bool(_suffix(name)) or os.path.exists(name) or not HUB_NAME.fullmatch(name)
    return Path(name).name if local and name not in SOURCES else name


def source_digest(name: str) -> str:
    """Return the digest of a source's content.

    A hub dataset is known by its name, and so is what a model or a seeded program writes: its origin is another input.
    """
    if is_endless(name):
        return digest({"made": label(name), "words": words()})
    if name in SOURCES:
        return digest([SOURCES[name](held_out) for held_out in (False, True)])
    files = [path for path in sorted(Path(name).rglob("*")) if path.is_file()] if os.path.isdir(name) else [Path(name)]
    return digest({os.path.relpath(path, name): file_digest(path) for path in files}) if files[0].is_file() else name


def rows_file(rows: Iterable[Any]) -> str:
    """Write rows in memory to a .jsonl file of the cache and return its path."""
    content = "".join(f"{_line(row, number)}\n" for number, row in enumerate(rows))
    if not content:
        raise DataError("the data has no rows; give texts, chats or records")
    path = cache_directory("data") / f"{hashlib.sha256(content.encode()).hexdigest()}.jsonl"
    if path.is_file():
        mark_used(path)
    else:
        with atomic_write(path) as partial:
            partial.write_text(content, encoding="utf-8")
    return str(path)


def _line(row: Any, number: int) -> str:
    record = {"text": row} if isinstance(row, str) else dict(row) if isinstance(row, Mapping) else {"messages": row}
    try:
        line = json.dumps(record)  # half a character is refused where it is read
    except TypeError as error:  # an image, a date
        raise DataError(f"row {number} of the data: {error}; leave that column out") from error
    _checked(record, f"row {number} of the data")
    return line


def is_name(row: Any) -> bool:
    """Return True if a row of data can only be meant as the name of a source: a path, or ASCII without spaces."""
    spaces = any(map(str.isspace, row))
    return os.path.exists(row) or bool(_suffix(row)) or (row.isascii() and not spaces)


def check_source(name: str) -> None:
    """Refuse an unknown source, or a file that cannot be read, before minutes of work; the hub is not asked."""
    if name not in SOURCES and not is_endless(name):
        files = source_files(name)
        for path in files:
            _bytes(path, 1)
        if not files:
            _hub_name(name)


def _suffix(name: str) -> str:
    """Return the ending of a file of a known format in lower case; empty for any other name."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in (".txt", ".json", ".jsonl") else ""


def source_files(name: str) -> list[Path]:
    """Return the file of a source, the files of a folder that are of a known format, or none of what is no file."""
    if name in SOURCES or not os.path.isdir(name):
        return [Path(name)] if name not in SOURCES and (os.path.exists(name) or _suffix(name)) else []
    files = [path for path in sorted(Path(name).rglob("*")) if path.is_file() and _suffix(path.name)]
    if not files:
        raise DataError(f"{name} has no .txt, .json or .jsonl file")
    return files


def is_prose(name: str) -> bool:
    """Return True if a source is running text or a folder, not separate documents: windows come from anywhere in it."""
    return name in SOURCES or os.path.isdir(name) or (os.path.isfile(name) and _suffix(name) not in (".json", ".jsonl"))


def read_records(name: str, *, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Read the records of a source, each in one of FORMATS; text is one record, a large file several.

    seed: shuffles the rows of the hub. held_out: of a built-in source, the last 20 % instead of the first 80 %.
    """
    if name in SOURCES:
        yield {"text": SOURCES[name](held_out)}
    elif files := source_files(name):
        for path in files:
            yield from _read_file(path)
    else:
        yield from hub_records(name, seed)


def shuffled_records(name: str, *, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Read records in an order drawn by seed; of the hub and of a large text no more than are asked for."""
    if os.path.isfile(name) and is_prose(name):
        return ({"text": piece} for piece in _pieces(Path(name), random.Random(seed)))
    records = read_records(name, seed=seed, held_out=held_out)
    if not os.path.exists(name):
        return records
    listed = list(records)
    return iter(random.Random(seed).sample(listed, len(listed)))


def read_documents(name: str, *, seed: int = 0, held_out: bool = False) -> Iterator[str]:
    """Read the texts of a source, shuffled by seed when there are several; records of other formats give all their text."""
    for record in shuffled_records(name, seed=seed, held_out=held_out):
        kind = record_format(record)
        if kind == "chat":
            yield "\n\n".join(turn["content"] for turn in record["messages"])
        else:
            yield record["text"] if kind == "text" else "".join(prompt_and_response(record))


def _read_file(path: Path) -> Iterator[dict[str, Any]]:
    suffix = _suffix(path.name)
    if suffix == ".jsonl":
        return (_checked(value, where) for where, value in read_lines(path))
    return _entries(path) if suffix == ".json" else ({"text": piece} for piece in _pieces(path))


def _pieces(path: Path, rng: random.Random | None = None) -> Iterator[str]:
    """Read a text file as a whole, or beyond LARGE in pieces that end with a line. rng: shuffles them."""
    size = path.stat().st_size if path.is_file() else 0
    if size <= LARGE:
        yield _read_text(path)
        return
    numbers = [*range(size // PIECE)]
    if rng:
        rng.shuffle(numbers)
    with path.open("rb") as file:
        for number in numbers:
            start, end = (_line_start(file, place * size // len(numbers)) for place in (number, number + 1))
            file.seek(start)
            yield _decoded(path, file.read(end - start), start)


def _line_start(file: BinaryIO, place: int) -> int:
    """Return where the first line at or after a place starts, or near it, where a line is long, a character."""
    file.seek(place)
    ahead = file.read(LINE)
    line = ahead.find(b"\n") + 1 if place else 0
    return place + (line or len(ahead) - len(ahead.lstrip(bytes(range(0x80, 0xC0)))))


def _bytes(path: Path, size: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; check the path") from error


def _read_text(path: Path) -> str:
    text = _decoded(path, _bytes(path))
    if not text.strip():
        raise DataError(f"{path} is {'blank' if text else 'empty'}; give a file with text")
    return text


def _decoded(path: Path, data: bytes, start: int = 0) -> str:
    try:
        return io.StringIO(data.decode("utf-8-sig"), newline=None).read()
    except UnicodeDecodeError as error:
        at = f"byte {error.object[error.start]:#x} at position {start + error.start}"
        raise DataError(f"{path}: {at} is no UTF-8; convert the file to UTF-8") from error


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a .json file, which holds a list of them."""
    try:
        entries = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}; correct it, or save it as .jsonl") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} holds a {type(entries).__name__}; give a JSON list of objects, or a .jsonl file")
    return (_checked(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, start=1))


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each line of a .jsonl file is, for messages, and its value."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):  # splitlines also cuts at U+2028, unlike JSON
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: {line[:60]!r} is no JSON ({error}); correct or delete that line") from error


def _checked(record: Any, where: str) -> dict[str, Any]:
    """Check a record, and return it without its null fields, which count as absent."""
    given = {key: value for key, value in record.items() if value is not None} if isinstance(record, dict) else {}
    if record_format(given) is None:
        raise DataError(f"{where}: no format fits {record!r:.60}; give {FORMATS}")
    return given


def record_format(record: Mapping[str, Any]) -> str | None:
    """Find the first of KEYS whose fields a record has, each of its type; None when there is none."""
    return next(
        (name for name, keys in KEYS.items() if all(key in record and _is_right(record, key) for key in keys)), None
    )


def _is_right(record: Mapping[str, Any], key: str) -> bool:
    """Return True if a field is a text, messages a list of turns, and what stands beside an instruction a text, too."""
    if key == "messages":
        turns = record[key] if isinstance(record[key], list) else []
        return bool(turns) and all(isinstance(turn, dict) and _has_texts(turn, ("role", "content")) for turn in turns)
    return _has_texts(record, (key, *(beside for beside in CONTEXT if key == "instruction" and beside in record)))


def _has_texts(record: Mapping[str, Any], keys: Iterable[str]) -> bool:
    return all(isinstance(record.get(key), str) for key in keys)


def hub_records(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """Stream the rows of a hub dataset, shuffled by seed in a buffer of a thousand rows."""
    dataset, revision, split = _hub_name(name)
    import datasets

    with hub_or_copies() as reachable:
        try:
            rows = datasets.load_dataset(dataset, revision=revision or None, split=split or "train", streaming=True)
            for number, row in enumerate(rows.shuffle(seed=seed), start=1):
                yield _checked(row, f"{name}, row {number}")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = one_line(error) if reachable else "no hub within reach, and no copy of it here"
            raise DataError(f"{name}: {reason}; check the name, or give a local file") from error


def _hub_name(name: str) -> tuple[str, str, str]:
    """Split the name of a hub dataset into dataset, revision and split."""
    dataset, _, split = name.partition(":")
    if "/" not in dataset or dataset.startswith((".", "/", "~")):
        near = difflib.get_close_matches(dataset, [*SOURCES, *IN_CONTEXT, OWN, "mix"], 1)
        raise DataError(f"no text {name!r}; {f'did you mean {near[0]}?' if near else f'give self, mix, {NAMES}'}")
    dataset, _, revision = dataset.partition("@")
    return dataset, revision, split


def prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
    """Render the prompt by the paper's data template, and return it with the response to learn."""
    kind = record_format(record)
    if kind == "prompt":
        return record["prompt"], record["completion"]
    extra = record.get("input") or record.get("context")
    prompt = PROMPT.format(
        with_input=", paired with an input that provides further context" if extra else "",
        instruction=record["instruction"],
        input=f"### Input:\n{extra}\n\n" if extra else "",
    )
    return prompt, record["output" if kind == "alpaca" else "response"]
