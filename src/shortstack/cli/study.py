"""study: a grid of trials, resumable."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.options import Report
from shortstack.cli.shrink import Keep
from shortstack.errors import InputError
from shortstack.machine.formats import duration, size

if TYPE_CHECKING:
    from shortstack.study.costs import Estimate
    from shortstack.study.runner import Outcome


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
    artefacts: Annotated[
        str | None,
        typer.Option(
            help="URL for what steps write, such as s3://bucket/runs, where machines share no folder.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[Keep, typer.Option(help="Weights that stay when nothing needs them any more.")] = Keep.best,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which steps there are, and about what they would take.")
    ] = False,
) -> None:
    """Run a grid of trials, each step once.

    Killed and started again, it goes on.
    """
    from shortstack.study import grid as studies

    if file == "schema":
        return console.show_json(studies.schema())
    if dry_run:
        return _foretell(file, report)
    if output is None:
        raise InputError("--output", expected="a folder for the study", found="none", fix="add -o runs, or --dry-run")
    from shortstack.study import run_study
    from shortstack.study import workers as launching

    launcher = (
        functools.partial(launching.ray, ray, workers) if ray else functools.partial(launching.local, workers or 1)
    )
    with report.bars() as progress:
        found = run_study(file, output, launcher=launcher, artefacts=artefacts, keep=keep.value, progress=progress)
    if report.json:
        console.show_json(found.to_dict())
    else:
        show_outcome(found)
    report.next_step("report", output)
    if found.failed:
        raise typer.Exit(1)
    return None


def _foretell(file: str, report: Report) -> None:
    """What the study would take."""
    from shortstack.study import read_study
    from shortstack.study.costs import estimate

    read = read_study(file)
    with report.bars():
        found = estimate(read)
    if report.json:
        return console.show_json(found.to_dict())
    show_estimate(read.title or file, found)
    report.next_step("study", file, "-o", "runs")
    return None


def show_estimate(title: str, found: Estimate) -> None:
    """A study's steps, what sharing saves, and what they would take."""
    rows = [
        (kind, f"{found.asked[kind]:,}", f"{steps:,}", duration(found.seconds[kind]))
        for kind, steps in found.steps.items()
    ]
    asked, steps = sum(found.asked.values()), sum(found.steps.values())
    rows.append(("start of a worker", "", "", duration(found.start_seconds)))
    rows.append(("all", f"{asked:,}", f"{steps:,}", duration(found.total_seconds)))
    heading = ("step", "of all trials", "shared, at most", "one worker, about")
    console.show_table(f"{title}: {found.trials:,} trials; nothing is run", heading, rows)

    def told(value: int | None) -> str:
        return "unknown" if value is None else size(value)

    console.show(
        f"Disk for weights, at most: {told(found.disk_bytes)} kept, {told(found.least_disk_bytes)} with --keep none."
    )
    console.show(f"Memory of the largest step, about: {told(found.memory_bytes)}.")
    for reason in found.unknown:
        console.show(f"Unknown: {reason}.")


def show_outcome(found: Outcome) -> None:
    """How a study ended, and what failed."""
    rows = [
        ("trials done", f"{found.done:,} of {found.trials:,}"),
        ("trials failed", f"{found.failed:,}"),
        ("steps run now", f"{found.steps:,}"),
        ("steps done before", f"{found.skipped:,}"),
    ]
    console.show_table(str(found.folder), ("", "study"), rows)
    for failure in found.failures:
        console.show(f"Failed: {failure['kind']}, {failure['error'].strip().splitlines()[-1]}")
        console.show(f"  log {failure['log']}")
