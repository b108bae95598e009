"""Verbs of many runs: study, watch."""

from __future__ import annotations

import functools
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shortstack import console, tables
from shortstack.cli.application import verb
from shortstack.cli.options import Report
from shortstack.errors import InputError


class Keep(StrEnum):
    best = "best"
    all = "all"
    none = "none"


@verb()
def study(
    file: Annotated[
        str, typer.Argument(help="A study's YAML file; or the word schema, for its JSON schema.", show_default=False)
    ],
    report: Report,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the study; one that is there goes on.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Steps at once. Default: 1; with --ray, the cluster's CPUs.", show_default=False),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Run steps on this Ray cluster: an address, auto, or local.", show_default=False),
    ] = None,
    keep: Annotated[Keep, typer.Option(help="Weights that stay when nothing needs them any more.")] = Keep.best,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which steps there are, and about what they would take.")
    ] = False,
) -> None:
    """Run a grid of trials, each step once.

    Killed and started again, it goes on.
    """
    from shortstack import study as studies

    if file == "schema":
        return console.show_json(studies.schema())
    if dry_run:
        return _foretell(file, report)
    if output is None:
        raise InputError("--output", expected="a folder for the study", found="none", fix="add -o runs, or --dry-run")
    from shortstack import launching
    from shortstack.running import run_study

    launcher = (
        functools.partial(launching.ray, ray, workers) if ray else functools.partial(launching.local, workers or 1)
    )
    with report.bars() as progress:
        found = run_study(file, output, launcher=launcher, keep=keep.value, progress=progress)
    if report.json:
        console.show_json(found.to_dict())
    else:
        tables.show_outcome(found)
    report.next_step("watch", output)
    if found.failed:
        raise typer.Exit(1)
    return None


def _foretell(file: str, report: Report) -> None:
    """What the study would take."""
    from shortstack.estimating import estimate
    from shortstack.study import read_study

    read = read_study(file)
    with report.bars():
        found = estimate(read)
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_estimate(read.title or file, found)
    report.next_step("study", file, "-o", "runs")
    return None


@verb()
def watch(
    runs: Annotated[Path, typer.Argument(help="The folder of a study.", show_default=False)],
    report: Report,
    once: Annotated[bool, typer.Option("--once", help="One look, as it also is where there is no terminal.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show how far a running study is.

    Reads its run store, and changes nothing.
    """
    from shortstack.watching import look

    found = look(runs)
    if report.json:
        return console.show_json(found.to_dict())
    from rich.console import Console
    from rich.live import Live

    if once or not sys.stdout.isatty():
        return Console().print(tables.frame(found))
    with Live(tables.frame(found), auto_refresh=False) as live:
        while not found.finished:
            time.sleep(every)
            found = look(runs)
            live.update(tables.frame(found), refresh=True)
    return None
