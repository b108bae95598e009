"""shortstack.json as it is read: a file that anybody may have written, checked before its words are taken."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shortstack.checkpoint.file_names import RECORD, TEMPLATES, is_own_name
from shortstack.errors import CheckpointError


def read_record(directory: Path) -> Mapping[str, Any]:
    """The record beside a checkpoint's weights; empty where there is none.

    Raises:
        CheckpointError: it is not what shortstack writes, or names files elsewhere.
    """
    path = directory / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(record, ensure_ascii=False).encode()  # it goes into the records of what is made from this
        found = "" if _is_record(record) else "another form"
    except (ValueError, RecursionError) as error:
        record, found = {}, str(error)
    if found:
        fix = "write the checkpoint again, or remove that file"
        raise CheckpointError(path, expected="the record shortstack writes", found=found, fix=fix)
    _check_names(path, record["files"])
    return dict(record)


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Refuse a manifest that names anything but files of the checkpoint: they are verified, and go to the hub.

    Raises:
        CheckpointError: a name leads out of the folder, or is another's but for the case of its letters.
    """
    seen = dict[str, str]()
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if not is_own_name(name.removeprefix(f"{TEMPLATES}/")) or other != name:
            expected = "files of its own folder, whose names differ by more than the case of letters"
            found = f"{name!r}" if other == name else f"{other!r} and {name!r}"
            raise CheckpointError(path, expected=expected, found=found, fix="do not use this checkpoint")


def _is_record(value: Any) -> bool:
    """The manifest, and what each step from the first model on tells of itself."""
    if not isinstance(value, dict) or not _is_manifest(value.get("files")):
        return False
    steps = []
    while value:
        if not isinstance(value, dict) or not _is_step(value):
            return False
        steps.append(value)
        value = value.get("origin")
    return bool(steps)


def _is_manifest(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(file, dict) and type(file.get("size")) is int and isinstance(file.get("sha256"), str)
        for file in files.values()
    )


def _is_step(record: Mapping[str, Any]) -> bool:
    """A verb, the source's name, and for a cut the original number of each layer and how many there were."""
    parts = (record.get(name) for name in ("source", "layer_map", "plan", "repair"))
    source, layer_map, plan, repair = ({} if part is None else part for part in parts)
    return (
        isinstance(record.get("verb"), str)
        and all(isinstance(each, dict) for each in (source, layer_map, plan, repair))
        and isinstance(source.get("id"), str)
        and all(type(number) is int and number >= 0 for number in layer_map.values())
        and (not plan or type(plan.get("layers")) is int)
    )
