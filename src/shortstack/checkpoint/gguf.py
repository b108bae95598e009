"""GGUF in: a .gguf file becomes a bf16 safetensors directory in the cache, through transformers' own reader."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from shortstack.architecture.anatomy import UNBUILDABLE
from shortstack.checkpoint.card import LICENCE
from shortstack.checkpoint.file_names import CARD
from shortstack.checkpoint.gguf_file import GgufFile, read_gguf, write_gguf
from shortstack.errors import CheckpointError, is_out_of_memory, one_line
from shortstack.machine.cache import cache_directory, content_key, kept_folder, make_room, mark_used
from shortstack.machine.files import check_disk, file_digest
from shortstack.machine.progress import Progress, hush_transformers, silent

# What reading a damaged, truncated or unknown GGUF file ends in, somewhere in transformers' reader.
UNREADABLE = (*UNBUILDABLE, struct.error)


def dequantised(path: Path, *, progress: Progress = silent) -> Path:
    """Return the directory that holds `path` dequantised to bf16; it is made once per file content and reader."""
    model = read_gguf(path)
    digests = [file_digest(part) for part in model.parts]
    whole = digests[0] if len(digests) == 1 else digests
    key = content_key("gguf", file=whole, reader=version("gguf"), dtype="bfloat16", card=1)
    place = cache_directory("gguf") / key
    if place.is_dir():
        mark_used(place)
        return place
    _check_room(model, place.parent)
    progress("dequantising", 0, 1)
    with kept_folder(place) as partial:
        with _in_one_file(model, partial) as file:
            _convert(file, partial, said=model.parts[0])
        (partial / CARD).write_text(_card(model), encoding="utf-8")
    progress("dequantising", 1, 1)
    return place


def _check_room(model: GgufFile, cache: Path) -> None:
    """Refuse to dequantise what the cache's disk cannot hold, at two bytes a weight; parts are put together there, too."""
    needed = 2 * sum(math.prod(tensor.shape) for tensor in model.tensors)
    if len(model.parts) > 1:
        needed += sum(len(tensor.data) for tensor in model.tensors)
    make_room(needed)
    elsewhere = "free some space, or set SHORTSTACK_CACHE to a folder elsewhere"
    check_disk(cache, needed, what=f"{model.parts[0].name}, dequantised", fix=elsewhere)


@contextmanager
def _in_one_file(model: GgufFile, partial: Path) -> Iterator[Path]:
    """Put the file to read alone in a folder: transformers would also read an adapter or a tokenizer's config beside it.

    It reads none in parts, which are put together there meanwhile.
    """
    with TemporaryDirectory(dir=partial.parent, prefix=f"{partial.name}-") as folder:
        whole = Path(folder) / "model.gguf"
        if len(model.parts) == 1:
            whole.symlink_to(model.parts[0].resolve())
        else:
            write_gguf(whole, model.entries, model.tensors, like=model)
        yield whole


def _card(model: GgufFile) -> str:
    names = {name: f"general.{name.replace('_', '.')}" for name in LICENCE}
    said = {name: model.entries[key].value for name, key in names.items() if key in model.entries}
    return f"---\n{yaml.safe_dump(said)}---\n"


def _convert(path: Path, out: Path, *, said: Path) -> None:
    """Convert the file to a checkpoint of transformers. said: the file's name, for messages."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(path.parent), path.name
    try:
        with redirect_stderr(io.StringIO()):  # a bar of the reader's own, which would break ours; errors are raised
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    except Exception as error:
        bare = type(error) is Exception  # the tokenizers library raises no other of what it cannot read
        if is_out_of_memory(error) or (not bare and not isinstance(error, UNREADABLE)):
            raise
        reason = f"it is damaged, or of an unknown architecture ({type(error).__name__}: {one_line(error)})"
        fix = "download it again, or start from the safetensors checkpoint"
        raise CheckpointError(f"transformers cannot read {said}: {reason}; {fix}") from error
    # A model read from GGUF refuses to be saved while it remembers that it was quantised, which its weights no longer are.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.config._name_or_path = ""
    hush_transformers()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
