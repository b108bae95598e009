"""Verbs of many runs: shrink, study, watch."""

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
from shortstack.cli.options import TEXT, Compute, Model, Out, Report
from shortstack.errors import InputError


class Keep(StrEnum):
    best = "best"
    all = "all"
    none = "none"


@verb()
def shrink(
    model: Model,
    output: Out,
    compute: Compute,
    report: Report,
    drop: Annotated[
        str | None,
        typer.Option(help="How much to remove: 25% or a count. Default: the recipe's, or 25%.", show_default=False),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="best, which chooses between plans; another preset (`shortstack ls recipes`); or a file."),
    ] = "best",
    data: Annotated[
        str | None, typer.Option(help="What to heal on. Default: the recipe's, if it names data.", show_default=False)
    ] = None,
    text: Annotated[str, typer.Option(help=f"Calibration text: {TEXT}")] = "pydoc",
    samples: Annotated[int, typer.Option(min=4, help="Calibration windows of 128 tokens.")] = 32,
    perplexity: Annotated[
        str, typer.Option(help="Comma-separated texts to measure on, first the one to choose by.")
    ] = ("pydoc"),
) -> None:
    """Make a model shorter, from its name to a healed checkpoint.

    Score, plan, repair, heal and evaluate as a recipe has it; report and model card lie beside the weights.
    """
    from shortstack import launching
    from shortstack.shrinking import Looks
    from shortstack.shrinking import shrink as shrink_model

    looks = Looks(
        text=text,
        samples=samples,
        perplexity=tuple(name.strip() for name in perplexity.split(",")),
        seed=compute.seed,
        device=compute.device.value,
        dtype=compute.dtype.value,
    )
    with report.bars() as progress:
        found = shrink_model(
            model,
            output,
            drop=drop,
            recipe=recipe,
            data=data,
            looks=looks,
            launcher=launching.local,
            progress=progress,
        )
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_shrunk(found)
    report.next_step("evaluate", output)
    return None


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
        found = run_study(file, output, launcher=launcher, artefacts=artefacts, keep=keep.value, progress=progress)
    if report.json:
        console.show_json(found.to_dict())
    else:
        tables.show_outcome(found)
    report.next_step("report", output)
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
