"""verify: whether a checkpoint is whole and computes what it should."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.dry_run import DryRun, needing, show_needs
from shortstack.cli.option_groups import Without
from shortstack.cli.options import Session, check_unused

if TYPE_CHECKING:
    from shortstack.pruning import Verification


@verb()
def verify(
    directory: Annotated[str, typer.Argument(help="A checkpoint shortstack wrote.", show_default=False)],
    session: Annotated[Session, Without("seed", "device", "dtype", "device_map")],
    against: Annotated[
        str | None, typer.Option(help="The model it was made from: compare logits with it, those layers skipped.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute.")] = "cpu",
    dry_run: DryRun = False,
) -> None:
    """Check that a checkpoint is whole and computes what it should.

    Digests, tensors and, with --against, that the logits equal the source's without those layers.
    """
    if not against:
        check_unused("verify without --against", replace(session.source, trust_remote_code=False))

    from shortstack.pruning import verify as verify_checkpoint

    with session.report.bars() as progress:
        checkpoint = session.alone.open(directory, progress)  # --revision is of the model it is against
        origin = session.source.open(against, progress) if against else None
        if dry_run:
            needs = needing(checkpoint, replace(session.compute, device=device)).verify(origin)
            return show_needs("verify", needs, session.report)
        result = verify_checkpoint(
            checkpoint, against=origin, device=device, stream=session.compute.stream, progress=progress
        )
    if session.report.json:
        console.show_json(result.to_dict())
    else:
        show_verification(directory, result)
    if not result.ok:
        raise typer.Exit(1)
    healed, trust = checkpoint.record["verb"] == "heal", session.alone.words
    then = ("evaluate", directory) if healed else ("heal", directory, "--data", "pydoc", "-o", "healed")
    session.report.next_step(*then, *trust)
    return None


def show_verification(directory: str, found: Verification) -> None:
    """Each check and how it ended."""
    rows = [(name, "ok" if check["ok"] else "FAILED", check["detail"]) for name, check in found.checks.items()]
    console.show_table(directory, ("check", "result", "detail"), rows)
