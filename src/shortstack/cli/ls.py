"""ls: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.evaluation.suites import SUITES, TASKS
from shortstack.healing import METHODS
from shortstack.machine.tables import Table
from shortstack.planning import STRATEGIES
from shortstack.scoring import METRICS

Listed = Literal["metrics", "strategies", "methods", "recipes", "tasks"]
SHOWN = (
    "name",
    "feed",
    "formula",
    "summary",
    "trains",
    "title",
    "hub_data",
    "paper",
    "suite",
    "metric",
    "chance",
    "about",
)


def ls(
    what: Annotated[Listed | None, Parameter(help="One of the lists. Default: all.")] = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List what can be named on the command line.

    $ shortstack ls recipes
    """
    from shortstack.healing.recipes import listed_recipes

    listings = {
        "metrics": [asdict(metric) for metric in METRICS.values()],
        "strategies": [asdict(strategy) for strategy in STRATEGIES.values()],
        "methods": [
            {"name": method.name, "trains": method.trains, "paper": method.paper} for method in METHODS.values()
        ],
        "recipes": listed_recipes(),
        "tasks": [{"suite": suite, **asdict(TASKS[name])} for suite, names in SUITES.items() for name in names],
    }
    wanted = {
        name: [{key: value for key, value in row.items() if key in SHOWN} for row in rows]
        for name, rows in listings.items()
        if what in (None, name)
    }
    if as_json:
        return console.show_json(wanted)
    for title, rows in wanted.items():
        columns = [name.replace("_", " ") for name in rows[0]]
        console.show_table(Table.of(title, columns, [tuple(row.values()) for row in rows]))
    return None
