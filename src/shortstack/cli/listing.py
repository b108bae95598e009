"""Verbs that show what there is: demo, ls."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shortstack import console
from shortstack.cli.application import verb
from shortstack.cli.options import Report, Seed
from shortstack.methods import METHODS
from shortstack.metrics import METRICS
from shortstack.suites import SUITES, TASKS


class Listing(StrEnum):
    metrics = "metrics"
    methods = "methods"
    recipes = "recipes"
    tasks = "tasks"


@verb()
def demo(
    report: Report,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New directory for the three checkpoints and demo.json.")
    ] = Path("demo-out"),
    seed: Seed = 0,
) -> None:
    """Cut, heal and measure a small model that comes along.

    SmolLM2-135M-Instruct loses a quarter of its layers.
    """
    from shortstack.demo import run, show

    with report.bars() as progress:
        result = run(output, seed=seed, progress=progress)
    if report.json:
        return console.show_json(result.to_dict())
    show(result)
    report.say("shortstack prune MODEL --drop 25% -o pruned, with a model directory or hub id of yours")
    return None


@verb()
def ls(
    what: Annotated[
        Listing | None, typer.Argument(help="metrics, methods, recipes or tasks. Default: all.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List what can be named on the command line."""
    from shortstack.recipe import recipe_titles

    listings = {
        Listing.metrics: [asdict(each) for each in METRICS.values()],
        Listing.methods: [asdict(each) for each in METHODS.values()],
        Listing.recipes: [{"name": name, "title": title} for name, title in recipe_titles().items()],
        Listing.tasks: [{"suite": suite, **asdict(TASKS[name])} for suite, names in SUITES.items() for name in names],
    }
    shown = ("name", "feed", "formula", "trains", "title", "paper", "suite", "metric", "chance", "about")
    wanted = {
        name.value: [{key: value for key, value in row.items() if key in shown} for row in rows]
        for name, rows in listings.items()
        if what in (None, name)
    }
    if as_json:
        return console.show_json(wanted)
    for title, rows in wanted.items():
        console.show_table(title, tuple(rows[0]), [tuple(map(_cell, row.values())) for row in rows])
    return None


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
