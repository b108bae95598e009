"""What people see: tables on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from shortstack.errors import ShortstackError
from shortstack.machine.files import finite
from shortstack.machine.formats import printable
from shortstack.machine.progress import say

# What is set flush right: a number, its share, or its unit beside it.
NUMBER = re.compile(r"-|inf|[\d.,e+-]+( ?(%|M|[kMGT]?B))?( \([-+. \d]+%?\)| \+- [\d.]+| to .+)?")


def show_json(data: Mapping[str, Any]) -> None:
    """One JSON object on stdout; infinities, which JSON has no word for, as null."""
    json.dump(finite(data), sys.stdout)
    sys.stdout.write("\n")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; columns of numbers are flush right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=printable(title), title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        numbers = index and all(NUMBER.fullmatch(row[index]) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # Text: names from a checkpoint are never markup
    Console().print(table)


def show_columns(title: str, first: tuple[str, Sequence[str]], columns: Mapping[str, Sequence[str]]) -> None:
    """Columns of cells by their headings, in as many tables as the terminal's width needs; the first is in each of them."""
    heading, names = first
    widths = {name: max(len(name), *map(len, cells)) + 3 for name, cells in columns.items()}
    room = width() - max(len(heading), *map(len, names)) - 4
    for number, some in enumerate(fitting(widths, room)):
        rows = [[name, *(columns[column][row] for column in some)] for row, name in enumerate(names)]
        show_table("" if number else title, [heading, *some], rows)


def fitting(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """The names, in rows that are at most so wide.

    >>> fitting({"a": 3, "b": 3, "c": 5}, 7)
    [['a', 'b'], ['c']]
    """
    rows: list[list[str]] = [[]]
    for name, each in widths.items():
        if rows[-1] and sum(widths[other] for other in rows[-1]) + each > room:
            rows.append([])
        rows[-1].append(name)
    return rows


def width() -> int:
    """Columns of the terminal that stdout is, or 80."""
    from rich.console import Console

    return Console().width


def show(message: str) -> None:
    """A line of the result, on stdout."""
    sys.stdout.write(printable(message) + "\n")


def show_left_out(left_out: Sequence[str]) -> None:
    """What there was less of than was wanted, where the minutes were too few."""
    if left_out:
        show(f"Reduced to fit --minutes: {'; '.join(left_out)}.")


def show_answers(said: Mapping[str, str]) -> None:
    """A prompt, and what each model answers, without what would move the cursor or change colours."""
    sys.stdout.write(f"\nPrompt: {printable(said['prompt'])}\n")
    for name, answer in said.items():
        if name != "prompt":
            sys.stdout.write(f"{name}:\n" + "".join(f"  {line}\n" for line in printable(answer).splitlines()))
    sys.stdout.write("\n")


def next_step(command: str) -> None:
    """The one thing to type next."""
    say(f"\nNext: {command}")


def fail(error: ShortstackError) -> None:
    """An error as four short lines on stderr."""
    place = error.place(error.option and f"--{error.option.replace('_', '-')}")
    fix = error.fix if error.fix.endswith("?") else f"to fix it {error.fix}"
    say(f"Error: {place}\n  expected  {error.expected}\n  found     {error.found}\n  {fix}")
