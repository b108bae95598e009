"""Console output: tables on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shortstack.errors import ShortstackError
from shortstack.machine.files import finite
from shortstack.machine.formats import printable
from shortstack.machine.progress import say

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table as RichTable
    from rich.text import Text

    from shortstack.machine.tables import Table, Tabled

FOLDED = 18  # characters that a column of words has at least, before it stands in a table of its own


def show_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object; infinities, which JSON has no word for, as null."""
    json.dump(finite(data), sys.stdout)
    sys.stdout.write("\n")


def show_result(result: Tabled) -> None:
    for table in result.tables():
        show_table(table)


def show_table(table: Table) -> None:
    """Print a table in as many parts as the terminal's width needs, and its caption and notes below it."""
    from rich.console import Console

    console = Console()
    widths = {place: _width(table, place) for place in range(len(table.columns))}
    first = widths.pop(0)
    console.print(title(table))
    for places in fitting(widths, console.width - first - 1):
        console.print(drawn(table, (0, *places)))
    for line in filter(None, (table.caption, *table.notes)):
        show(line)


def title(table: Table) -> Text:
    from rich.text import Text

    return Text(printable(table.title), "bold")


def drawn(table: Table, places: Sequence[int] | None = None) -> RichTable:
    """Lay a table, or some of its columns, out for the terminal, without its title. Names are never markup, never folded."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(header_style="bold")
    texts = {place: _texts(table, place) for place in places or range(len(table.columns))}
    for place in texts:
        head, words = table.columns[place], table.words[place]
        side: JustifyMethod = "left" if words else "right"
        rich_table.add_column(
            Text(printable(head.heading)), justify=side, overflow="fold", no_wrap=not place or not words
        )
    for row in zip(*texts.values(), strict=True):
        rich_table.add_row(*map(Text, row))
    return rich_table


def _width(table: Table, place: int) -> int:
    """Return the room that a column needs, its rules included; words are folded."""
    widest = max(map(len, (table.columns[place].heading, *_texts(table, place))))
    return 3 + (min(widest, FOLDED) if place and table.words[place] else widest)


def _texts(table: Table, place: int) -> list[str]:
    cells = [row.cells[place] for row in table.rows]
    return [printable(cell.said + cell.marks) for cell in cells]


def fitting(widths: Mapping[Any, int], room: int) -> list[list[Any]]:
    """Return the names, in rows that are at most so wide.

    >>> fitting({"a": 3, "b": 3, "c": 5}, 7)
    [['a', 'b'], ['c']]
    """
    rows: list[list[Any]] = [[]]
    for name, width in widths.items():
        if rows[-1] and sum(widths[other] for other in rows[-1]) + width > room:
            rows.append([])
        rows[-1].append(name)
    return rows


def show(message: str) -> None:
    sys.stdout.write(printable(message) + "\n")


def show_answers(said: Mapping[str, str]) -> None:
    """Print a prompt and what each model answers, without what would move the cursor or change colours."""
    sys.stdout.write(f"\nPrompt: {printable(said['prompt'])}\n")
    for name, answer in said.items():
        if name != "prompt":
            lines = printable(answer).splitlines() or ["(no answer)"]
            sys.stdout.write(f"{name}:\n" + "".join(f"  {line}\n" for line in lines))
    sys.stdout.write("\n")


def fail(error: ShortstackError) -> None:
    """Print an error on stderr, its option as it is typed."""
    say(f"Error: --{error.option.replace('_', '-')}: {error.message}" if error.option else f"Error: {error}")
