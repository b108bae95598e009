"""shortstack.json as it is read: a file that anybody may have written, checked before its words are taken."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shortstack.checkpoint.file_names import CARD, RECORD, TEMPLATES, equal_elsewhere, is_own_name
from shortstack.errors import CheckpointError, one_line

Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    """A part of a record, with the fields that are read of it."""

    model_config = ConfigDict(strict=True)


class _File(_Part):
    size: int
    sha256: str


class _Source(_Part):
    id: str


class _Versions(_Part):
    shortstack: str


class _Plan(_Part):
    layers: Count
    removed: list[Count]


class _Tokens(_Part):
    source: str
    samples: Count
    length: Count
    seed: Count


class _Repair(_Part):
    kept: bool
    tokens: _Tokens


class _HealingConfig(_Part):
    method: str
    loss: str
    data: list[str]


class _Healing(_Part):
    config: _HealingConfig
    samples: Count


class _Step(_Part):
    """The record of one step; origin: of the one before."""

    verb: Annotated[str, Field(pattern="^[a-z]+$")]
    source: _Source
    versions: _Versions
    layer_map: dict[Annotated[str, Field(pattern="^[0-9]+$")], Count] | None = None
    plan: _Plan | None = None
    repair: _Repair | None = None
    healing: _Healing | None = None
    origin: _Step | None = None


class _Record(_Step):
    files: dict[str, _File]


def read_record(directory: Path) -> Mapping[str, Any]:
    """Read the record beside a checkpoint's weights; empty where there is none."""
    path = directory / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(record, ensure_ascii=False).encode()  # it goes into the records of what is made from this
        _Record.model_validate(record)
    except (ValueError, RecursionError) as error:
        wrong = f"{path} is not a record of shortstack ({one_line(error):.60})"
        raise CheckpointError(f"{wrong}; write the checkpoint again, or remove that file") from error
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
