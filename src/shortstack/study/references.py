"""What a study's file refers to: models, texts, and variables of the environment."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.pieces import file_digest
from shortstack.data.in_context import IN_CONTEXT, words
from shortstack.data.mixture import MIX, parse_sources
from shortstack.data.sources import OWN, read_documents
from shortstack.errors import DataError, InputError
from shortstack.machine.files import digest


def open_model(name: str, **options: Any) -> Checkpoint:
    """A checkpoint by a study's word for it: org/name@revision is a hub model at a branch, tag or commit."""
    model, revision = with_revision(name)
    return Checkpoint.open(model, revision=revision, **options)


def with_revision(name: str) -> tuple[str, str | None]:
    """A study's word for a model as its name and the revision that it asks for; a path that is there asks for none.

    >>> with_revision("org/name@v2"), with_revision("demo")
    (('org/name', 'v2'), ('demo', None))
    """
    model, _, revision = (name, "", "") if os.path.exists(name) else name.partition("@")
    return model, revision or None


def text_digest(source: str) -> str:
    """Digest of a text, of several, or of a folder of files; a hub dataset is known by its name.

    What a model or a seeded program writes is known by its name, too: what it comes from is another input of a step.

    Raises:
        DataError: there is no such file.
    """
    name = str(expanded(source))
    path = Path(name)
    if not path.exists() and (name == MIX or {",", "="} & set(name)):
        return digest({each.source: [each.weight, text_digest(each.source)] for each in parse_sources(name)})
    if name == OWN:
        return digest({"made": name})
    if name in IN_CONTEXT:
        return digest({"made": name, "words": words()})
    if path.is_dir():
        return digest(
            {str(each.relative_to(path)): file_digest(each) for each in sorted(path.rglob("*")) if each.is_file()}
        )
    if path.is_file():
        return file_digest(path)
    if name == "pydoc":
        parts = [text for held_out in (False, True) for text in read_documents(name, held_out=held_out)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if name.endswith((".txt", ".json", ".jsonl")) or "/" not in name or name.startswith((".", "/", "~")):
        raise DataError(source, expected="a file, pydoc, or a hub dataset org/name", found="none", fix="check the path")
    return name


def expanded(value: Any) -> Any:
    """The same data with $NAME and ${NAME} in its strings replaced by the environment's.

    Raises:
        InputError: there is no such variable.
    """
    if isinstance(value, Mapping):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [expanded(item) for item in value]
    if not isinstance(value, str):
        return value
    text = os.path.expandvars(value)
    unset = re.search(r"\$\{?([A-Za-z_]\w*)", text)
    if unset:
        none, fix = f"no {unset[1]} in the environment", f"export {unset[1]}=..."
        raise InputError(value, expected="names that the environment has", found=none, fix=fix)
    return text
