"""What texts and data are known by: digests of their content, for keys of what is kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shortstack.data.in_context import words
from shortstack.data.mixture import Weighted, check_sources
from shortstack.data.sources import SOURCES
from shortstack.machine.files import digest


def text_digest(name: str) -> str:
    """Digest of a text, of several, or of a folder of files; a hub dataset is known by its name.

    What a model or a seeded program writes is known by its name, too: what it comes from is another input of a step.
    """
    if Path(name).is_dir() and name not in SOURCES:
        return _folder_digest(Path(name))
    parts = check_sources(name)
    if len(parts) > 1 or parts[0].source != name:
        return digest({each.source: [each.weight, _digest(each)] for each in parts})
    return _digest(parts[0])


def _digest(part: Weighted) -> str:
    """In the order in which names are looked up when a text is read."""
    name = part.source
    if part.endless:
        return digest({"made": name, "words": words()})
    if name in SOURCES:
        return digest([SOURCES[name](held_out) for held_out in (False, True)])
    return _file_digest(Path(name)) if Path(name).is_file() else name


def _folder_digest(folder: Path) -> str:
    files = (each for each in sorted(folder.rglob("*")) if each.is_file())
    return digest({str(each.relative_to(folder)): _file_digest(each) for each in files})


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
