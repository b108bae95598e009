"""list: names that options take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.evaluation.suites import SUITES, TASKS
from shortstack.healing import METHODS
from shortstack.machine.tables import Table
from shortstack.planning import STRATEGIES
from shortstack.scoring import METRICS

Listed = Literal["metrics", "strategies", "methods", "recipes", "tasks", "texts"]


def list(  # noqa: A001  the verb's name
    what: Annotated[Listed | None, Parameter(help="Which list: metrics, strategies, ... Default: all.")] = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List metrics, strategies, methods, recipes, tasks and texts.

    $ shortstack list recipes
    """
    from shortstack.data.text import listed_texts
    from shortstack.healing.recipes import listed_recipes

    listings: dict[str, Sequence[Mapping[str, Any]]] = {
        "metrics": _rows(METRICS.values(), "name", "feed", "formula", "paper"),
        "strategies": _rows(STRATEGIES.values(), "name", "feed", "summary", "paper"),
        "methods": _rows(METHODS.values(), "name", "trains", "paper"),
        "recipes": listed_recipes(),
        "tasks": [
            {"suite": suite, **row}
            for suite, names in SUITES.items()
            for row in _rows((TASKS[name] for name in names), "name", "metric", "chance", "about")
        ],
        "texts": listed_texts(),
    }
    wanted = {name: rows for name, rows in listings.items() if what in (None, name)}
    if as_json:
        return console.show_json(wanted)
    for title, rows in wanted.items():
        columns = [name.replace("_", " ") for name in rows[0]]
        console.show_table(Table.of(title, columns, [tuple(row.values()) for row in rows]))
    return None


def _rows(entries: Iterable[object], *fields: str) -> Sequence[Mapping[str, Any]]:
    return [{field: getattr(entry, field) for field in fields} for entry in entries]
