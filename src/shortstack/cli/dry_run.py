"""What `--dry-run` says of a verb: about the time, memory and disk it takes on this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
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
    show_needs(verb, needs, session.report, output=output, device=session.compute.device)


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


def show_needs(verb: str, needs: Needs, report: Reporting, *, output: Path | None = None, device: str = "cpu") -> None:
    """The needs beside what there is, and what does not fit. output: where something would be written.

    device: where it would be computed.

    Raises:
        OutputError: it exists.
    """
    from shortstack.machine.files import check_new
    from shortstack.machine.memory import available_memory

    if output:
        check_new(output, make_folders=True)
    device = _picked(device)
    short = lacking(needs.memory_bytes, needs.written_bytes, output, device=device)
    if report.json:
        return console.show_json(needs.to_dict() | {"lacking": short})
    rows = [
        ("time", "unknown" if needs.seconds is None else duration(needs.seconds)),
        ("memory", f"{size(needs.memory_bytes)}, of {size(available_memory(device))} free{_on(device)}"),
        ("weights read", size(needs.read_bytes)),
    ]
    if needs.written_bytes:
        rows.append(("weights written", f"{size(needs.written_bytes)}, of {size(free_disk(output))} free"))
    console.show_table("dry run: nothing is computed or written", ("", f"{verb}, about"), rows)
    if needs.streamed:
        console.show("Layers are read one by one.")
    for reason in needs.unknown:
        console.show(f"Unknown: {reason}.")
    show_lacking(short, report)
    return None


def lacking(memory: int, written: int, output: Path | None, *, device: str) -> list[str]:
    """What does not fit: memory beyond what this process has and what is free where it computes, or disk."""
    from shortstack.machine.memory import available_memory

    _, held = process_so_far()  # libraries, which are counted in what is needed
    device = _picked(device)
    room, free = held + available_memory(device), free_disk(output)
    short = [f"memory{_on(device)}: {size(memory)}, of {size(room)} to be had"] if memory > room else []
    return short + ([f"disk: {size(written)}, of {size(free)} free"] if written > free else [])


def _picked(device: str) -> str:
    """The device that is meant; of the CPU that is known without torch."""
    if device == "cpu":
        return device
    from shortstack.machine.device import pick_device

    return pick_device(device)


def _on(device: str) -> str:
    """Whose memory is meant, where it is not the machine's."""
    return f" on {device}" if device.startswith("cuda") else ""


def free_disk(output: Path | None) -> int:
    """Bytes that are free where an output would lie."""
    from shortstack.machine.files import existing_folder

    return shutil.disk_usage(existing_folder(output or Path())).free


def show_lacking(short: Sequence[str], report: Reporting) -> None:
    """What does not fit, or that the command may be typed."""
    for each in short:
        console.show(f"It does not fit here: {each}.")
    if not short:
        report.say("the same command without --dry-run")
