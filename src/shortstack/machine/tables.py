"""Results as tables: what a notebook shows of them, and what becomes a DataFrame."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shortstack.machine.formats import number

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Table:
    """Rows of words, numbers and None, under heads that name what they are and their unit."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def html(self) -> str:
        """As HTML, every word of it escaped.

        >>> Table("one", ("layer", "ppl"), [("<0>", None)]).html()[29:]
        '<thead><tr><th>layer</th><th>ppl</th></tr></thead><tbody><tr><td>&lt;0&gt;</td><td></td></tr></tbody></table>'
        """
        head = "".join(f"<th>{html.escape(each)}</th>" for each in self.columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in self.rows)
        caption = html.escape(self.title)
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    """A cell: numbers are flush right, and as people read them."""
    if isinstance(value, float):
        return f'<td style="text-align: right">{number(value)}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td style="text-align: right">{value:,}</td>'
    said = {None: "", True: "yes", False: "no"}.get(value, value) if value is None or isinstance(value, bool) else value
    return f"<td>{html.escape(str(said))}</td>"


class Tabled(ABC):
    """A result that is a table. A dataclass of this kind says repr=False, so that what a prompt shows of it is one line."""

    @abstractmethod
    def table(self) -> Table:
        """What was found, its values as they are."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.table().title}>"

    def _repr_html_(self) -> str:
        return self.table().html()

    def to_pandas(self) -> DataFrame:
        """The table as a DataFrame of pandas, which comes with datasets."""
        from pandas import DataFrame

        found = self.table()
        return DataFrame(list(found.rows), columns=list(found.columns))
