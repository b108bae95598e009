"""verify: whether a checkpoint is whole and computes what it should."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.options import Saved, Session, check_unused, flat, is_quantised, unused
from shortstack.errors import InputError


def verify(
    directory: Annotated[str, Parameter(help="A checkpoint shortstack wrote.")],
    /,
    *,
    against: Annotated[
        str | None, Parameter(help="The source model: compare logits with it, skipping the removed layers.")
    ] = None,
    device: Annotated[str, Parameter(help="Where to compute.")] = "cpu",
    output: Saved = None,
    session: Annotated[Session, flat(without="seed|device|dtype|device_map")] = Session(),
) -> None:
    """Check that a checkpoint is whole and computes what it should.

    It checks digests and tensors and, with --against, that logits equal the source's without the removed layers.

    $ shortstack verify pruned --against org/model
    """
    if directory.endswith(".gguf") and os.path.isfile(directory):
        check_unused("a .gguf file", session.compute, session.source)
        if device != "cpu":
            raise unused("a .gguf file", "device", device)
        return _verify_file(Path(directory), against, session, output)
    if not against:
        check_unused("verify without --against", replace(session.source, trust_remote_code=False))

    from shortstack.pruning import verify as verify_checkpoint

    with session.report.bars() as progress:
        checkpoint = session.alone.open(directory, progress)  # --revision is of the model it is against
        origin = session.open_origin(against, checkpoint, progress) if against else None
        result = verify_checkpoint(
            checkpoint, against=origin, device=device, stream=session.compute.stream, progress=progress
        )
    session.report.result(result, output)
    if not result.ok:
        sys.exit(1)
    trust = session.alone.command_line
    if checkpoint.record["verb"] == "heal" or is_quantised(checkpoint):
        session.report.next_step("evaluate", directory, *trust)
    else:
        unpruned = session.beside(against, origin) if against and origin else None
        session.report.next_heal(directory, unpruned, *trust)
    return None


def _verify_file(file: Path, against: str | None, session: Session, output: Path | None) -> None:
    from shortstack.checkpoint.source import gguf_of
    from shortstack.pruning.gguf_verification import verify_gguf

    source = gguf_of(against) if against else None
    if against and source is None:
        raise InputError(against, expected="a .gguf file", fix="name the file that it was made from", option="against")
    with session.report.bars() as progress:
        result = verify_gguf(file, against=source, progress=progress)
    session.report.result(result, output)
    if not result.ok:
        sys.exit(1)
    session.report.say(f"llama-server -m {shlex.quote(str(file))}")
