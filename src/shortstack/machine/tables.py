"""Results as tables: what a terminal, a notebook, a page and a paper show of them, and what becomes a DataFrame."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shortstack.machine.formats import shown, uncertainty
from shortstack.machine.numbers import is_number

if TYPE_CHECKING:
    from pandas import DataFrame

BELOW, ABOVE, NEAR = "↓", "↑", "≈"
LEGEND = {BELOW: "worse than the base model", ABOVE: "better than the base model", NEAR: "within noise of the best"}


@dataclass(frozen=True)
class Column:
    """A heading, the kind of the values below it, as formats.shown() has it, their unit, and what the heading means."""

    label: str
    kind: str = ""
    unit: str = ""
    title: str = ""

    @property
    def heading(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Cell:
    """A value as it is, with its standard error, and a word beside it; by default of its column's kind.

    place: 1 if it is the best of its block, 2 if the second. marks: signs of LEGEND; why: the tests behind them. link: what
    it comes from.
    """

    value: Any
    kind: str = ""
    stderr: float | None = None
    note: str = ""
    place: int = 0
    marks: str = ""
    why: str = ""
    link: str = ""

    @property
    def text(self) -> str:
        return shown(self.value, self.kind)

    @property
    def error(self) -> str:
        return uncertainty(self.value, self.stderr, self.kind)

    @property
    def measured(self) -> str:
        """The value with its standard error."""
        return f"{self.text} ± {self.error}" if self.error else self.text

    @property
    def said(self) -> str:
        """The value with all that stands beside it."""
        return f"{self.measured} {self.note}" if self.note else self.measured

    @property
    def sort(self) -> Any:
        """The sort key; None is last in either direction."""
        value = self.value[0] if isinstance(self.value, tuple) else self.value
        return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns, of which the first names the row; base: whether others are compared with it."""

    cells: tuple[Cell, ...]
    base: bool = False

    @property
    def label(self) -> str:
        return str(self.cells[0].text)


@dataclass(frozen=True)
class Block:
    """Rows that are compared with each other, that of the base model first."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """Blocks of rows under the same columns. caption: how to read it; notes: what else there is to say, a line each."""

    title: str
    columns: Sequence[Column]
    blocks: Sequence[Block]
    caption: str = ""
    notes: Sequence[str] = ()
    key: str = ""

    @classmethod
    def of(
        cls,
        title: str,
        columns: Iterable[object],
        rows: Sequence[Sequence[Any]],
        *,
        caption: str = "",
        notes: Sequence[str] = (),
    ) -> Table:
        """Make a table of one block, of values or cells. Leave out a column without any value; columns: or their names."""
        heads = [column if isinstance(column, Column) else Column(str(column)) for column in columns]
        made = [[_cell(value, head) for value, head in zip(row, heads, strict=True)] for row in rows]
        kept = [place for place in range(len(heads)) if not made or any(row[place].value is not None for row in made)]
        block = Block("", tuple(Row(tuple(row[place] for place in kept)) for row in made))
        return cls(title, [heads[place] for place in kept], (block,), caption, notes)

    @property
    def rows(self) -> list[Row]:
        return [row for block in self.blocks for row in block.rows]

    @property
    def words(self) -> list[bool]:
        """Whether a column is of words; numbers are flush right."""
        return [
            column.kind == "text" or any(not _is_numeric(row.cells[place].value) for row in self.rows)
            for place, column in enumerate(self.columns)
        ]

    @property
    def marks(self) -> dict[str, str]:
        """The marks that occur, and what they say."""
        seen = {mark for row in self.rows for cell in row.cells for mark in cell.marks}
        return {mark: meaning for mark, meaning in LEGEND.items() if mark in seen}

    def legend(self, best: str, second: str) -> str:
        """Explain the marks; empty if nothing is ranked. best, second: how those two are shown."""
        if not any(cell.place for row in self.rows for cell in row.cells):
            return ""
        marks = "".join(f"; {mark} {meaning}" for mark, meaning in self.marks.items())
        return f"{best}: best of its block; {second}: second{marks}; ± one standard error."

    def values(self) -> tuple[list[str], list[list[Any]]]:
        """Return headings and rows of values as they are, each beside its standard error where its column has them."""
        spreads = [any(row.cells[place].stderr is not None for row in self.rows) for place in range(len(self.columns))]
        heads = [[column.label, f"{column.label} s.e."] for column in self.columns]
        rows = [[[cell.value, cell.stderr] for cell in row.cells] for row in self.rows]
        return _flat(heads, spreads), [_flat(row, spreads) for row in rows]

    def pandas(self) -> DataFrame:
        """Return the values as a DataFrame of pandas, which comes with datasets."""
        from pandas import DataFrame

        heads, rows = self.values()
        return DataFrame(rows, columns=heads)

    def csv(self) -> str:
        """Write the values in full: shares from 0 to 1, times in seconds. The first column names the row's block."""
        out, titles = io.StringIO(), [block.title for block in self.blocks for _ in block.rows]
        heads, rows = self.values()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["block", *heads])
        for title, row in zip(titles, rows, strict=True):
            writer.writerow(
                [title, *(" to ".join(map(str, value)) if isinstance(value, tuple) else value for value in row)]
            )
        return out.getvalue()

    def html(self) -> str:
        """Write a bare table of HTML, every word of it escaped.

        >>> Table.of("one", ("layer", "ppl"), [("<0>", 2.5)]).html()[79:]
        '<tbody><tr><td>&lt;0&gt;</td><td style="text-align: right">2.5</td></tr></tbody></table>'
        """
        head = "".join(f"<th>{html.escape(column.heading)}</th>" for column in self.columns)
        styles = ["" if words else ' style="text-align: right"' for words in self.words]
        body = "".join(
            f"<tr>{''.join(f'<td{s}>{html.escape(c.said)}</td>' for c, s in zip(row.cells, styles, strict=True))}</tr>"
            for row in self.rows
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in (self.caption, *self.notes) if note)
        caption = f"<caption>{html.escape(self.title)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def markdown(self) -> str:
        """Write a table of Markdown: best in bold, second best in italics."""
        rows = [[markdown_text(column.label) for column in self.columns]]
        rows.append(["---" if words else "---:" for words in self.words])
        for block in self.blocks:
            if block.title:
                rows.append([f"**{markdown_text(block.title)}**", *[""] * (len(self.columns) - 1)])
            rows += [_markdown_row(row) for row in block.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any, column: Column) -> Cell:
    cell = value if isinstance(value, Cell) else Cell(value)
    return cell if cell.kind else replace(cell, kind=column.kind)


def _is_numeric(value: Any) -> bool:
    return value is None or is_number(value) or (isinstance(value, tuple) and all(map(is_number, value)))


def _flat(pairs: Sequence[Sequence[Any]], spreads: Sequence[bool]) -> list[Any]:
    """Flatten the pairs: both of each where the column has standard errors, else the first."""
    return [value for pair, spread in zip(pairs, spreads, strict=True) for value in pair[: 1 + spread]]


def markdown_text(text: str) -> str:
    """Escape text on one line so that Markdown, and HTML in it, leave it as it is.

    >>> markdown_text("a|b *c* <i>")
    'a\\\\|b \\\\*c\\\\* &lt;i>'
    """
    plain = text.replace("&", "&amp;").replace("<", "&lt;")
    escaped = re.sub(r"([\\`*_\[\]|#~@$]|:(?=//)|(?<=www)\.)", r"\\\1", plain)
    return " ".join(escaped.split())


def _markdown_row(row: Row) -> list[str]:
    label = markdown_text(row.label)
    return [f"*{label}*" if row.base else label, *map(_marked, row.cells[1:])]


def _marked(cell: Cell) -> str:
    form = {1: "**{}**", 2: "*{}*"}.get(cell.place, "{}")
    beside = filter(None, (cell.error and f"±{cell.error}", markdown_text(cell.note), cell.marks))
    return " ".join([form.format(markdown_text(cell.text)), *beside])


class Tabled(ABC):
    """A result that is a table. A dataclass of this kind says repr=False, so that what a prompt shows of it is one line."""

    @abstractmethod
    def table(self) -> Table:
        """Return the results as a table."""

    def tables(self) -> list[Table]:
        """Return the table, and those that stand below it."""
        return [self.table()]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.table().title}>"

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self.tables())

    def to_pandas(self) -> DataFrame:
        """Return the table as a DataFrame of pandas."""
        return self.table().pandas()
