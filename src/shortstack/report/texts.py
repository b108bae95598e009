"""The same tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence

from shortstack.report.table import ABOVE, BELOW, NEAR, Cell, Row, Table

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",  # noqa: RUF001
    "–": "--",  # noqa: RUF001
    "∞": r"$\infty$",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    BELOW: r"$\downarrow$",
    ABOVE: r"$\uparrow$",
    NEAR: r"$\approx$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def markdown(title: str, opening: str, tables: Sequence[Table]) -> str:
    """A page of Markdown: best in bold, second best in italics."""
    parts = [f"# {markdown_text(title)}", markdown_text(opening)]
    for table in tables:
        parts += [
            f"## {table.title}",
            markdown_text(table.finding),
            _markdown_table(table),
            _legend(table, "**bold**", "*italic*"),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    head = [table.heading, *(column.label for column in table.columns)]
    rules = ["---", *("---" if column.kind == "text" else "---:" for column in table.columns)]
    rows = [[markdown_text(name) for name in head], rules]
    for block in table.blocks:
        if block.title:
            rows.append([f"**{markdown_text(block.title)}**", *[""] * len(table.columns)])
        rows += [
            [_markdown_label(row), *(_written(cell, markdown_text, "**{}**", "*{}*", " {}") for cell in row.cells)]
            for row in block.rows
        ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_label(row: Row) -> str:
    return f"*{markdown_text(row.label)}*" if row.base else markdown_text(row.label)


def markdown_text(text: str) -> str:
    """Text that Markdown and HTML in it leave as it is, on one line.

    >>> markdown_text("a|b *c* <i>")
    'a\\\\|b \\\\*c\\\\* &lt;i>'
    """
    escaped = re.sub(r"([\\`*_\[\]|#])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    return " ".join(escaped.split())


def latex(tables: Sequence[Table]) -> str:
    r"""Every table as a `table` of the package booktabs: best in bold, second best underlined.

    Load it with \usepackage{booktabs} and \input{FILE}.
    """
    return "\n\n".join(_latex_table(table) for table in tables) + "\n"


def _latex_table(table: Table) -> str:
    width = len(table.columns) + 1
    head = [table.heading, *(column.label for column in table.columns)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(' '.join([table.title + '.', table.finding, _legend(table, 'bold', 'underlined')]))}}}",
        rf"\label{{tab:{table.key}}}",
        rf"\begin{{tabular}}{{l{''.join('l' if column.kind == 'text' else 'r' for column in table.columns)}}}",
        r"\toprule",
        " & ".join(latex_text(name) for name in head) + r" \\",
    ]
    for block in table.blocks:
        lines.append(r"\midrule")
        if block.title:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{latex_text(block.title)}}}}} \\")
        for row in block.rows:
            cells = [
                _written(cell, latex_text, r"\textbf{{{}}}", r"\underline{{{}}}", "$^{{{}}}$") for cell in row.cells
            ]
            lines.append(" & ".join([latex_text(row.label), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def latex_text(text: str) -> str:
    r"""Text that LaTeX prints as it is.

    >>> latex_text("50% of a_b")
    '50\\% of a\\_b'
    """
    return " ".join("".join(LATEX.get(character, character) for character in text).split())


def _written(cell: Cell, escaped: Callable[[str], str], best: str, second: str, mark: str) -> str:
    text = escaped(cell.text)
    text = {1: best, 2: second}.get(cell.judgement.place, "{}").format(text)
    error = escaped(f" ±{cell.error}") if cell.error else ""
    marks = escaped(cell.marks).replace("$", "") if mark.startswith("$") else cell.marks
    return text + (f" {error}" if error else "") + (mark.format(marks) if marks else "")


def _legend(table: Table, best: str, second: str) -> str:
    if not table.ranked:
        return ""
    marks = "".join(f"; {mark} {said}" for mark, said in table.marks.items())
    return f"{best}: best of its block; {second}: second{marks}; ± one standard error."


def csv_text(table: Table) -> str:
    """A row for each row, numbers in full: the value of a column and beside it, where it has one, its standard error.

    Settings that the row's block is about stand in the first column; shares are from 0 to 1, times in seconds.
    """
    errors = [any(row.cells[number].stderr is not None for row in table.rows) for number in range(len(table.columns))]
    head = ["block", table.heading]
    for column, spread in zip(table.columns, errors, strict=True):
        head += [column.label, f"{column.label} s.e."] if spread else [column.label]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for block in table.blocks:
        for row in block.rows:
            cells: list[object] = [block.title, row.label]
            for cell, spread in zip(row.cells, errors, strict=True):
                cells += [_plain(cell.value), _plain(cell.stderr)] if spread else [_plain(cell.value)]
            writer.writerow(cells)
    return out.getvalue()


def _plain(value: float | str | None) -> float | str:
    return "" if value is None else value
