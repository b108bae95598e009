"""The output of `--dry-run`: the work that would be done, and the memory and disk it needs."""

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
    rows: Sequence[tuple[str, str]], needed: Requirements, report: Reporting, *, output: Path, data: Mapping[str, Any]
) -> None:
    """Print the work and its requirements. rows: the work in words; data: the same for JSON; output: a place on the disk."""
    from shortstack.machine.files import existing_folder
    from shortstack.machine.memory import available_memory

    memory, disk = available_memory(needed.device), shutil.disk_usage(existing_folder(output)).free
    lacking = ["memory"] * (needed.memory_bytes > memory) + ["disk"] * (needed.disk_bytes > disk)
    if report.json:
        available = {"memory_available_bytes": memory, "disk_free_bytes": disk}
        return console.show_json({**data, **asdict(needed), **available, "lacking": lacking})
    space = {"memory": (needed.memory_bytes, memory), "disk": (needed.disk_bytes, disk)}
    sizes = [(f"{name}, about", f"{size(wanted)}, {size(free)} free") for name, (wanted, free) in space.items()]
    console.show_table(Table.of("dry run: no output is written", ("", "would be"), [*rows, *sizes]))
    if needed.streamed:
        console.show("Layers are read one by one.")
    if lacking:
        console.show(f"It does not fit here: too little {' and '.join(lacking)}.")
    else:
        report.say("the same command without --dry-run")
    return None
