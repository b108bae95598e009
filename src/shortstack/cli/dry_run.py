"""The output of `--dry-run`: the work that would be done, and the memory and disk it needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.machine.formats import size
from shortstack.machine.tables import Table

if TYPE_CHECKING:
    from shortstack.cli.options import OutputOptions
    from shortstack.machine.memory import Memory

CHECKS = "Run all checks and show what would be done and the memory and disk it needs. No output is written."
DryRun = Annotated[bool, Parameter(help=CHECKS)]


def show_dry_run(
    rows: Sequence[tuple[str, str]],
    memory: Memory,
    disk: int,
    report: OutputOptions,
    *,
    output: Path,
    data: Mapping[str, Any],
) -> None:
    """Print the work, its memory and its bytes on disk. rows: the work in words; data: for JSON; output: on that disk."""
    from shortstack.machine.files import existing_folder
    from shortstack.machine.memory import available_memory

    space = {
        "memory": (memory.nbytes, available_memory(memory.device)),
        "disk": (disk, shutil.disk_usage(existing_folder(output)).free),
    }
    lacking = [name for name, (needed, free) in space.items() if needed > free]
    if report.json:
        needs = {f"{name}_bytes": needed for name, (needed, _) in space.items()}
        available = {"memory_available_bytes": space["memory"][1], "disk_free_bytes": space["disk"][1]}
        how = {"streamed": memory.streamed, "device": memory.device}
        return console.show_json({**data, **needs, **how, **available, "lacking": lacking})
    sizes = [(f"{name}, about", f"{size(wanted)}, {size(free)} free") for name, (wanted, free) in space.items()]
    console.show_table(Table.of("dry run: no output is written", ("", "would be"), [*rows, *sizes]))
    if memory.streamed:
        console.show("Layers are read one by one.")
    if lacking:
        console.show(f"It does not fit here: too little {' and '.join(lacking)}.")
    else:
        report.say("the same command without --dry-run")
    return None
