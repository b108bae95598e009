"""A loaded model of transformers as a checkpoint: saved into the cache, once for each content."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.errors import InputError
from shortstack.machine.cache import cache_directory, content_key, kept_folder, make_room, mark_used
from shortstack.machine.files import check_disk, digest, file_digest
from shortstack.machine.progress import hush_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def saved(model: Any) -> Path:
    """Save a loaded model as it is now, with the tokenizer of the place that it was loaded from; return the directory."""
    _check(model)
    # By save_pretrained, to the config, too.
    written = {"dtype": str(model.dtype), "architectures": [type(model).__name__]}
    config, source = {**model.config.to_dict(), **written}, str(model.name_or_path)
    generation = model.generation_config.to_dict() if model.can_generate() else None
    tokenizer = _tokenizer(source)
    key = content_key(
        "models",
        weights=_digest(model),
        config=config,
        source=source,
        generation=generation,
        tokenizer=tokenizer and _saved_digest(tokenizer),
    )
    place = cache_directory("models") / key
    if place.is_dir():
        mark_used(place)
        return place
    nbytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    make_room(nbytes)
    check_disk(place.parent, nbytes, what="a model that was given in memory")
    hush_transformers()
    with kept_folder(place) as partial:
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
    return place


def _check(model: Any) -> None:
    expected, fix = "a directory, a hub id, a Checkpoint or a loaded model of transformers", "give one of them"
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise InputError(type(model).__name__, expected=expected, fix=fix, where="the model")
    away = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    quantised = getattr(model, "hf_quantizer", None) is not None
    if quantised or hasattr(model, "peft_config") or away:
        kind = "quantised weights" if quantised else f"{away} elsewhere" if away else "adapters"
        fix = "name its directory; merge_and_unload() adapters first"
        raise InputError(kind, expected="plain weights in memory", fix=fix, where="the model")


def _digest(model: PreTrainedModel) -> str:
    import torch

    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        sha.update(memoryview(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return sha.hexdigest()


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the place that a model was loaded from; None where it has none.

    What needs one says then that it lacks.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase | None = (
            AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False) if source else None
        )
    except (OSError, ValueError):
        return None
    return tokenizer


def _saved_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return digest({str(path.relative_to(folder)): file_digest(path) for path in files})
