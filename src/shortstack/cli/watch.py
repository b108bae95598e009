"""watch: the live progress of a study."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import SAID, Reporting, flat
from shortstack.machine.formats import duration, printable
from shortstack.machine.tables import Cell, Table

if TYPE_CHECKING:
    from rich.console import Group

    from shortstack.study.progress import StudyProgress

SECONDS = 2.0  # between two looks


def watch(
    runs: Annotated[Path, Parameter(help="The folder of a study.")],
    /,
    *,
    report: Annotated[Reporting, flat(SAID)] = Reporting(),
) -> None:
    """Show how far a running study is.

    It only reads the study's folder. Without a terminal it prints once and exits.

    $ shortstack watch runs
    """
    from shortstack.study.progress import study_progress

    study = study_progress(runs)
    if report.json:
        return console.show_json(asdict(study))
    from rich.console import Console
    from rich.live import Live

    if not sys.stdout.isatty():
        return Console().print(frame(study))
    with Live(frame(study), auto_refresh=False) as live:
        while not study.finished:
            time.sleep(SECONDS)
            study = study_progress(runs)
            live.update(frame(study), refresh=True)
    return None


def frame(study: StudyProgress) -> Group:
    from rich.console import Group
    from rich.text import Text

    rows = [
        (
            *(name, kind.done, kind.running, kind.failed, kind.expected, Cell(kind.seconds, "seconds")),
            "█" * round(12 * kind.done / max(kind.expected, 1)),
        )
        for name, kind in study.kinds.items()
    ]
    columns = ("step", "done", "running", "failed", "at most", "each", "")
    table = Table.of(study.title or "study", columns, rows)
    states = ", ".join(f"{count} {state}" for state, count in study.trials.items() if count)
    done, expected = (sum(getattr(kind, name) for kind in study.kinds.values()) for name in ("done", "expected"))
    lines = [f"steps: {done:,} of at most {expected:,} done", f"trials: {states or 'none'}"]
    lines += [
        f"running {step.kind} for {duration(step.seconds)}{f': {step.told}' if step.told else ''}"
        for step in study.running
    ]
    lines += [f"failed: {failure}" for failure in study.failures]
    left = "time left: unknown" if study.eta is None else f"at most {duration(study.eta)} left"
    ended = "finished" if study.finished else left
    return Group(console.title(table), console.drawn(table), *(Text(printable(line)) for line in [*lines, ended]))
