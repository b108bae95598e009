"""The same tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from shortstack.report.table import Cell, Table, TableRow


def markdown(title: str, opening: Sequence[str], tables: Sequence[Table], failed: Sequence[str]) -> str:
    """A page of Markdown: best in bold, second best in italics. opening: its first paragraphs; failed: its last list."""
    parts = [f"# {markdown_text(title)}", *map(markdown_text, opening)]
    for table in tables:
        legend = table.legend("**bold**", "*italic*")
        parts += [f"## {table.title}", markdown_text(table.finding), _markdown_table(table), legend]
    if failed:
        parts += ["## What failed", "\n".join(map(markdown_text, failed))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    rules = ["---", *("---" if column.kind == "text" else "---:" for column in table.columns)]
    rows = [[markdown_text(name) for name in table.headings], rules]
    for block in table.blocks:
        if block.title:
            rows.append([f"**{markdown_text(block.title)}**", *[""] * len(table.columns)])
        rows += [[_label(row), *(_written(cell) for cell in row.cells)] for row in block.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _label(row: TableRow) -> str:
    return f"*{markdown_text(row.label)}*" if row.base else markdown_text(row.label)


def markdown_text(text: str) -> str:
    """Text that Markdown and HTML in it leave as it is, on one line.

    >>> markdown_text("a|b *c* <i>")
    'a\\\\|b \\\\*c\\\\* &lt;i>'
    """
    escaped = re.sub(r"([\\`*_\[\]|#])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    return " ".join(escaped.split())


def _written(cell: Cell) -> str:
    text = {1: "**{}**", 2: "*{}*"}.get(cell.judgement.place, "{}").format(markdown_text(cell.text))
    return text + (f" ±{markdown_text(cell.error)}" if cell.error else "") + (f" {cell.marks}" if cell.marks else "")


def csv_text(table: Table) -> str:
    """The rows with their numbers in full, each beside its standard error where its column has them.

    Settings that the row's block is about stand in the first column; shares are from 0 to 1, times in seconds.
    """
    spreads = [any(row.cells[place].stderr is not None for row in table.rows) for place in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [[column.label, f"{column.label} s.e."] for column in table.columns]
    writer.writerow(["block", table.heading, *_flat(heads, spreads)])
    for block in table.blocks:
        for row in block.rows:
            cells = [[cell.value, cell.stderr] for cell in row.cells]
            writer.writerow([block.title, row.label, *_flat(cells, spreads)])
    return out.getvalue()


def _flat(pairs: Sequence[Sequence[object]], spreads: Sequence[bool]) -> list[object]:
    """Both of each pair where the column has standard errors, else the first."""
    return [each for pair, spread in zip(pairs, spreads, strict=True) for each in pair[: 1 + spread]]
