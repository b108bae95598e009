"""The output of `--dry-run`: the work that would be done, and the memory and disk it needs and this machine has."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.machine.formats import size
from shortstack.machine.tables import Table

if TYPE_CHECKING:
    from shortstack.cli.options import Reporting
    from shortstack.machine.memory import Requirements

CHECKS = "Run all checks and show what would be done and the memory and disk it needs. No output is written."
DryRun = Annotated[bool, Parameter(help=CHECKS)]


def show_dry_run(
    rows: Sequence[tuple[str, str]],
    needed: Requirements,
    report: Reporting,
    *,
    output: Path | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Show what would be done.

    rows: that in words; data: the same for machines. output: where on the disk bytes would go.
    """
    known = _balance(needed, output)
    short = _lacking(known)
    if report.json:
        return console.show_json({**(data or {}), **known, "lacking": short})
    on = f" on {needed.device}" if needed.device.startswith("cuda") else ""
    memory = f"{size(known['memory_bytes'])}, of {size(known['memory_available_bytes'])}"
    table = [*rows, (f"memory{on}, about", memory)]
    if needed.disk_bytes:
        table.append(("disk", f"{size(needed.disk_bytes)}, of {size(known['disk_free_bytes'])}"))
    console.show_table(Table.of("dry run: no output is written", ("", "would be"), table))
    if needed.streamed:
        console.show("Layers are read one by one.")
    for shortage in short:
        console.show(f"It does not fit here: {shortage}.")
    if not short:
        report.say("the same command without --dry-run")
    return None


def lacking(needed: Requirements, output: Path | None = None) -> list[str]:
    """Say what of memory and disk does not suffice, and how much there is."""
    return _lacking(_balance(needed, output))


def _lacking(known: Mapping[str, Any]) -> list[str]:
    there = {"memory": "memory_available_bytes", "disk": "disk_free_bytes"}
    return [
        f"{what}: {size(known[f'{what}_bytes'])}, of {size(known[have])}{' free' * (what == 'disk')}"
        for what, have in there.items()
        if known[f"{what}_bytes"] > known[have]
    ]


def _balance(needed: Requirements, output: Path | None) -> dict[str, Any]:
    """Set beside what is needed the memory that this process has and can still get there, and the free disk."""
    from shortstack.machine.files import existing_folder
    from shortstack.machine.memory import available_memory

    libraries = _libraries(needed)
    return {
        **asdict(needed),
        "memory_bytes": needed.memory_bytes + libraries,
        "memory_available_bytes": libraries + available_memory(needed.device),
        "disk_free_bytes": shutil.disk_usage(existing_folder(output or Path())).free,
    }


def _libraries(needed: Requirements) -> int:
    """Measure the memory of this process, which has loaded the verb's libraries by now; a GPU holds none of them."""
    import psutil

    return 0 if needed.device.startswith("cuda") else int(psutil.Process().memory_info().rss)
