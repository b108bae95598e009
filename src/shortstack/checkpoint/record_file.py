"""shortstack.json as it is read: a file that anybody may have written, checked before its words are taken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shortstack.checkpoint.file_names import CARD, RECORD, TEMPLATES, equal_elsewhere, is_own_name
from shortstack.errors import CheckpointError


def read_record(directory: Path) -> Mapping[str, Any]:
    """Read the record beside a checkpoint's weights; empty where there is none."""
    path = directory / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(record, ensure_ascii=False).encode()  # it goes into the records of what is made from this
        problem = "" if _is_record(record) else "another form"
    except (ValueError, RecursionError) as error:
        record, problem = {}, str(error)
    if problem:
        raise CheckpointError(
            f"{path} is not a record of shortstack ({problem}); write the checkpoint again, or remove that file"
        )
    _check_names(path, record["files"])
    return dict(record)


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Refuse a manifest that names anything but files of the checkpoint: they are verified, and go to the hub."""
    for name in names:
        if not is_own_name(name.removeprefix(f"{TEMPLATES}/")):
            raise CheckpointError(f"{path} names {name!r}, outside the checkpoint's folder; do not use this checkpoint")
    if pair := equal_elsewhere((RECORD, CARD, *names)):
        raise CheckpointError(
            f"{path}: {pair[0]} and {pair[1]} are one name on other systems; do not use this checkpoint"
        )


def _is_record(value: Any) -> bool:
    """Say whether a record has its manifest, and what each step from the first model on tells of itself."""
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
    """Say whether a step has a verb, its source's name and the versions, and what else it tells in its form."""
    names = ("source", "versions", "layer_map", "plan", "repair", "healing")
    parts = {name: {} if record.get(name) is None else record[name] for name in names}
    if not all(isinstance(part, dict) for part in parts.values()):
        return False
    verb, plan, healing = record.get("verb"), parts["plan"], parts["healing"]
    return (
        isinstance(verb, str)
        and bool(re.fullmatch(r"[a-z]+", verb))
        and isinstance(parts["source"].get("id"), str)
        and isinstance(parts["versions"].get("shortstack"), str)
        and all(new.isdecimal() and _is_count(old) for new, old in parts["layer_map"].items())
        and (not plan or (_is_count(plan.get("layers")) and _are_counts(plan.get("removed"))))
        and (not parts["repair"].get("kept") or _is_text(parts["repair"].get("tokens")))
        and (not healing or _is_healing(healing))
    )


def _is_healing(healing: Mapping[str, Any]) -> bool:
    """Return True if a healing has settings, named sources and a number of samples."""
    config = healing.get("config")
    if not isinstance(config, dict) or not all(isinstance(config.get(name), str) for name in ("method", "loss")):
        return False
    sources = config.get("data")
    named = isinstance(sources, list) and all(isinstance(name, str) for name in sources)
    return named and _is_count(healing.get("samples"))


def _is_text(tokens: Any) -> bool:
    """Say whether windows have a source, and how many there are, of which length and seed."""
    numbers = ("samples", "length", "seed")
    return (
        isinstance(tokens, dict)
        and isinstance(tokens.get("source"), str)
        and all(_is_count(tokens.get(name)) for name in numbers)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))
