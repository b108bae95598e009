"""What `--dry-run` says of a verb: about the time, memory and disk it takes on this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.options import Reporting, Session
from shortstack.errors import InputError, parameter
from shortstack.machine.formats import duration, size

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.machine.device import Compute
    from shortstack.study.needs import Needing, Needs

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say about what it takes here: time, memory, disk. Nothing is computed.")
]


def foresee(
    verb: str,
    model: str,
    session: Session,
    ask: Callable[[Needing], Needs],
    *,
    beside: str | None = None,
    output: Path | None = None,
) -> None:
    """Open the model, ask for a verb's needs and show them. beside: a model that the same is done with after it."""

    def asked(checkpoint: Checkpoint, *, first: bool) -> Needs:
        about = needing(checkpoint, session.compute, first=first)
        writes = output is not None  # which copies quantised weights as it does others
        return about.loaded() if about.quantised and not writes else ask(about)

    with session.report.bars() as progress:
        needs = asked(session.source.open(model, progress), first=True)
        if beside:
            needs = needs.then(asked(session.alone.open(beside, progress), first=False))
    show_needs(verb, needs, session.report, output=output)


def needing(checkpoint: Checkpoint, compute: Compute, *, first: bool = True) -> Needing:
    """Who says what verbs need on a checkpoint, once the libraries that open it are in memory.

    first: this process's time until here counts.

    Raises:
        InputError: layers are to be shared out, of which nothing is timed.
    """
    if compute.device_map:
        where, fix = parameter("device_map", compute.device_map), f"leave it out, or name a {parameter('device')}"
        raise InputError(where, expected="one device, to time it", found="layers that are shared out", fix=fix)
    _ = checkpoint.blueprint
    seconds, memory = process_so_far()

    from shortstack.study.needs import Begun, Needing

    return Needing(checkpoint, compute, Begun(seconds if first else 0.0, memory))


def process_so_far() -> tuple[float, int]:
    """Seconds since this process began, and the bytes of memory that it holds."""
    import psutil

    process = psutil.Process()
    return time.time() - process.create_time(), process.memory_info().rss


def show_needs(verb: str, needs: Needs, report: Reporting, *, output: Path | None = None) -> None:
    """The needs beside what there is. output: where something would be written.

    Raises:
        OutputError: it exists.
    """
    from shortstack.machine.files import check_new, existing_folder
    from shortstack.machine.memory import available_memory

    if output:
        check_new(output, make_folders=True)
    if report.json:
        return console.show_json(needs.to_dict())
    rows = [
        ("time", "unknown" if needs.seconds is None else duration(needs.seconds)),
        ("memory", f"{size(needs.memory_bytes)}, of {size(available_memory('cpu'))} free"),
        ("weights read", size(needs.read_bytes)),
    ]
    if needs.written_bytes:
        free = shutil.disk_usage(existing_folder(output or Path())).free
        rows.append(("weights written", f"{size(needs.written_bytes)}, of {size(free)} free"))
    console.show_table("dry run: nothing is computed or written", ("", f"{verb}, about"), rows)
    if needs.streamed:
        console.show("Layers are read one by one.")
    for reason in needs.unknown:
        console.show(f"Unknown: {reason}.")
    report.say("the same command without --dry-run")
    return None
