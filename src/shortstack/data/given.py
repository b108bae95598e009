"""Data that is given in memory, as a source by name: kept in the cache as the lines that it would have in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shortstack.data.sources import record_format
from shortstack.errors import DataError
from shortstack.machine.cache import cache_directory, mark_used
from shortstack.machine.files import atomic_write

Rows = Iterable[Any] | Path  # texts, chats as lists of messages, or records, as a list or a datasets.Dataset; or a file


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
            return json.dumps(record, ensure_ascii=False)
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
