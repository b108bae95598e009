"""The files beside a checkpoint's weights: which go into an output, and which are refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shortstack.checkpoint.file_names import (
    BESIDE,
    CARD,
    CODE,
    CONFIG,
    INDEX,
    LEGAL,
    NAMED_FILES,
    RECORD,
    SHARD,
    SINGLE,
    TEMPLATES,
    TOKENIZER_CONFIG,
    equal_elsewhere,
    is_own_name,
)
from shortstack.errors import CheckpointError

SETTINGS = (CONFIG, TOKENIZER_CONFIG, "preprocessor_config.json", "processor_config.json")  # which may name code
VERSION = re.compile(r"(config|tokenizer)\..+\.json")  # of config or tokenizer, for some releases of transformers
OWN = {CARD, CONFIG, RECORD, SINGLE, INDEX}
IMPORTED = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|import\s+\.(\w+))", re.MULTILINE)


def side_files(directory: Path, *, code: bool) -> list[Path]:
    """List the files that an output carries along: tokenizer, templates, generation config, licence. code: Python, too.

    Nothing else is copied or uploaded: what transformers' loaders do not ask for may be private.
    """
    sources = _code(directory) if code else {}
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sources.values()]
    versions = {
        name for each in SETTINGS[:2] for key in NAMED_FILES for name in _listed(_read(directory / each).get(key))
    }
    names = BESIDE | {name for name in versions if isinstance(name, str) and VERSION.fullmatch(name)} | sources.keys()

    def carried(path: Path) -> bool:
        if path.name in names or LEGAL.fullmatch(path.name):
            return True
        own = path.name in OWN or path.suffix.lower() in CODE
        return not own and any(f'"{path.name}"' in text or f"'{path.name}'" in text for text in texts)

    files = [path for path in sorted(directory.iterdir()) if path.is_file() and carried(path)]
    return [*files, *sorted((directory / TEMPLATES).glob("*.jinja"))]


def uploadable(directory: Path) -> set[str]:
    """Return the names of a checkpoint's files that may be uploaded: weights, config, and what goes along with them."""
    files = {path.relative_to(directory).as_posix() for path in side_files(directory, code=True)}
    return files | {CONFIG, SINGLE, INDEX} | {path.name for path in directory.iterdir() if SHARD.fullmatch(path.name)}


def _code(directory: Path) -> dict[str, Path]:
    """Find the Python files that auto_map names, and those that they import, by name."""
    named = [_modules(_read(directory / name).get("auto_map")) for name in SETTINGS]
    waiting, found = [name for modules in named for name in modules], dict[str, Path]()
    while waiting:
        path = directory / f"{waiting.pop()}.py"
        if path.name in found or not path.is_file():
            continue
        found[path.name] = path
        imports = IMPORTED.findall(path.read_text(encoding="utf-8", errors="replace"))
        waiting += [one or other for one, other in imports]
    return found


def _modules(auto_map: Any) -> Iterator[str]:
    """Yield the modules in an auto_map, whose values are `module.Class`, or lists of them."""
    for value in auto_map.values() if isinstance(auto_map, dict) else [auto_map]:
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and is_own_name(name) and "." in name:
                yield name.partition(".")[0]


def _read(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; empty without one. What is wrong with it otherwise, its reader says."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def leads_out(path: Path, directory: Path) -> bool:
    """Say whether a file in a folder is a link to one elsewhere; a snapshot in the hub's cache links to its blobs."""
    home = directory.resolve()
    snapshot = next((folder for folder in (home, *home.parents) if folder.match("models--*/snapshots/*")), None)
    places = (home, snapshot.parents[1] / "blobs") if snapshot else (home,)
    return not any(map(path.resolve().is_relative_to, places))


def check_own_files(directory: Path) -> None:
    """Refuse a folder whose files are links to others, no files, or name some elsewhere for transformers to read."""
    for path in sorted((*directory.iterdir(), *(directory / TEMPLATES).glob("*"))):
        if path.is_dir() and path.name != TEMPLATES:  # nothing is read of other folders
            continue
        if leads_out(path, directory):
            raise CheckpointError(
                f"{path} is a link to {path.resolve()}; copy that file into the folder, or remove the link"
            )
        if path.exists() and not path.is_file() and path.name != TEMPLATES:
            raise CheckpointError(f"{path} is a pipe, a socket or a device; remove it")
    if pair := equal_elsewhere(path.name for path in sorted(directory.iterdir())):
        raise CheckpointError(
            f"{directory}: {pair[0]} and {pair[1]} are one name on other systems; rename or remove one"
        )
    for name in (CONFIG, TOKENIZER_CONFIG):
        _check_named(directory / name)


def _check_named(path: Path) -> None:
    """Refuse a config that names files elsewhere."""
    for key, value in _read(path).items():
        listed = key in NAMED_FILES and not all(map(is_own_name, _listed(value)))
        single = key.endswith("_file") and isinstance(value, str) and not is_own_name(value) and os.path.exists(value)
        if listed or single:  # single: many tell a place on their author's machine, which is not here
            raise CheckpointError(f"{path}: {key} names {value!r}, outside the checkpoint's folder; remove that field")
