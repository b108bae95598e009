"""modelfile(): what Ollama is told of a model: its file, and where an answer ends."""

from __future__ import annotations

from pathlib import Path

from shortstack.checkpoint import Checkpoint, Model
from shortstack.errors import CheckpointError


def modelfile(checkpoint: Model, gguf: str | Path) -> str:
    """The Modelfile of a checkpoint that lies in a .gguf file beside it; the chat template is in that file.

    Raises:
        CheckpointError: the token that ends a text cannot stand in a Modelfile.
    """
    checkpoint = Checkpoint.of(checkpoint)
    lines, end = [f"FROM ./{Path(gguf).name}"], checkpoint.tokenizer().eos_token
    if end and (not end.isprintable() or '"' in end):
        expected, fix = "an eos_token that can stand between quotation marks", "write the Modelfile by hand"
        raise CheckpointError(checkpoint.directory, expected=expected, found=repr(end), fix=fix)
    return "\n".join([*lines, *([f'PARAMETER stop "{end}"'] if end else []), ""])
