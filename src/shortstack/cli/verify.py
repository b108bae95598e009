"""verify: whether a pruned model is whole and computes what it should."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.options import (
    RECORDED,
    Base,
    CommonOptions,
    Saved,
    check_unused,
    expand_fields,
    is_quantised,
    unused,
)
from shortstack.errors import InputError


def verify(
    directory: Annotated[str, Parameter(help="A checkpoint or .gguf file that shortstack wrote.")],
    /,
    *,
    base: Base = RECORDED,
    device: Annotated[str, Parameter(help="Where to compute.")] = "cpu",
    output: Saved = None,
    session: Annotated[CommonOptions, expand_fields(without="seed|device|dtype|device_map|revision")] = CommonOptions(),
) -> None:
    """Check that a pruned model is whole and computes what it should.

    It checks digests and tensors, and that logits equal the base model's without the removed layers.

    $ shortstack verify pruned
    """
    if directory.endswith(".gguf") and os.path.isfile(directory):
        check_unused("verify of a .gguf file", session.compute, session.source)
        if device != "cpu":
            raise unused("verify of a .gguf file", "device", device)
        return _verify_file(Path(directory), base, session, output)

    from shortstack.pruning import verify as verify_checkpoint

    with session.report.bars() as progress:
        checkpoint = session.source.open(directory, progress)
        opened = session.open_base(base, checkpoint, progress)
        result = verify_checkpoint(
            checkpoint, base=opened, device=device, stream=session.compute.stream, progress=progress
        )
    session.report.result(result, output)
    if not result.ok:
        sys.exit(1)
    if checkpoint.record["verb"] == "heal" or is_quantised(checkpoint):
        session.report.next_step("evaluate", directory, *session.source.command_line)
    else:
        session.report.next_heal(directory, base, *session.source.command_line)
    return None


def _verify_file(file: Path, base: str | None, session: CommonOptions, output: Path | None) -> None:
    from shortstack.checkpoint.source import gguf_of
    from shortstack.pruning.gguf_verification import verify_gguf

    source = gguf_of(base) if base else None
    if base and source is None:
        raise InputError(f"{base} is no .gguf file; name the file that was pruned", option="base")
    with session.report.bars() as progress:
        result = verify_gguf(file, base=source, progress=progress)
    session.report.result(result, output)
    if not result.ok:
        sys.exit(1)
    session.report.say(f"llama-server -m {shlex.quote(str(file))}")
