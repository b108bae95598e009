"""References of a study file: models, texts and environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.data import mixture
from shortstack.errors import InputError


def open_model(name: str, **options: Any) -> Checkpoint:
    """Return a checkpoint by a study's word for it: org/name@revision is a hub model at a branch, tag or commit."""
    model, revision = with_revision(name)
    return Checkpoint.open(model, revision=revision, **options)


def with_revision(name: str) -> tuple[str, str | None]:
    """Split a study's word for a model into its name and the revision it asks for; a path that is there asks for none.

    >>> with_revision("org/name@v2"), with_revision("demo")
    (('org/name', 'v2'), ('demo', None))
    """
    model, _, revision = (name, "", "") if os.path.exists(name) else name.partition("@")
    return model, revision or None


def check_text(source: str) -> None:
    """Refuse a text that a step could not read: several with commas, files with all their records; the hub is not asked."""
    for weighted in mixture.check_sources(str(expanded(source))):
        weighted.read()


def text_digest(source: str) -> str:
    """Digest of a text as a study's file names it, or of a folder of files."""
    return mixture.text_digest(str(expanded(source)))


def expanded(value: Any) -> Any:
    """Return the same data with $NAME and ${NAME} in its strings replaced by the environment's."""
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
        raise InputError(none, expected="names that the environment has", fix=fix, where=value)
    return text
