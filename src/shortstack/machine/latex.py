"""The tables as LaTeX, each on as many pages as it needs, no wider than the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shortstack.machine.formats import brief
from shortstack.machine.tables import ABOVE, BELOW, NEAR, Block, Cell, Table

PACKAGES = ("array", "booktabs", "fix-cm", "longtable", "pdflscape")
LARGEST = 8  # points: the size of letters, where a row of that size fits the line
CHARACTER = 0.68  # its width, in sizes of the letters; small ones are wider
UPRIGHT = 64  # sizes of the letters in a row: a wider table is turned
LONG = 40  # characters, after which the text of a column is wrapped
WRAPPED = rf">{{\raggedright\arraybackslash}}p{{{2 * CHARACTER * LONG:.0f}\tabcolsep}}"
# The size is that of which so many fit the line. Column separation is half of it, and the unit of wrapped columns.
SIZE = (
    r"\dimen0=\dimexpr\linewidth/{}\relax \ifdim\dimen0>{}pt \dimen0={}pt\fi"
    r"\fontsize{{\dimen0}}{{1.25\dimen0}}\selectfont \tabcolsep=0.5\dimen0 \LTcapwidth=\linewidth"
)
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedblright{}",
    "[": "{[}",  # at the beginning of a row, these two would be arguments of the line break before it
    "*": "{*}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "−": "$-$",  # noqa: RUF001
    "–": r"\textendash{}",  # noqa: RUF001
    "∞": r"$\infty$",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    BELOW: r"$\downarrow$",
    ABOVE: r"$\uparrow$",
    NEAR: r"$\approx$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def latex(tables: Sequence[Table]) -> str:
    r"""Every table as a longtable: best in bold, second best underlined.

    Load PACKAGES, and \input{FILE}. A table goes on over pages; a wide one is turned, and its letters are as small as its
    rows need to fit the page.
    """
    return "\n\n".join(map(_longtable, tables))


def _longtable(table: Table) -> str:
    layout, width = _layout(table)
    head = " & ".join(latex_text(column.label) for column in table.columns) + r" \\ \midrule"
    caption = latex_text(" ".join([f"{table.title}.", table.caption, table.legend("Bold", "underlined")]))
    lines = [
        r"\begingroup" + SIZE.format(math.ceil(width), LARGEST, LARGEST),
        rf"\begin{{longtable}}{{{''.join(layout)}}}",
        rf"\caption{{{caption}}}\label{{tab:{table.key}}} \\ \toprule",
        rf"{head} \endfirsthead",
        rf"\caption[]{{{latex_text(table.title)}, continued.}} \\ \toprule",
        rf"{head} \endhead",
        r"\bottomrule \endfoot",
        r"\midrule".join(_block(block, len(layout)) for block in table.blocks),
        r"\end{longtable}",
        r"\endgroup",
    ]
    return "\n".join([r"\begin{landscape}", *lines, r"\end{landscape}"] if width > UPRIGHT else lines)


def _layout(table: Table) -> tuple[list[str], float]:
    """The type of each column, and how wide a row is, in sizes of its letters."""
    layout, width = [], 0.0
    rows = [[column.label for column in table.columns], *([c.said + c.marks for c in row.cells] for row in table.rows)]
    for cells, words in zip(zip(*rows, strict=True), table.words, strict=True):
        length = max(map(len, cells))
        wrapped = words and length > LONG
        layout.append(WRAPPED if wrapped else "l" if words else "r")
        width += CHARACTER * (LONG if wrapped else length) + 1
    return layout, width


def _block(block: Block, columns: int) -> str:
    title = rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{latex_text(brief(block.title, 90))}}}}} \\*" + "\n"
    rows = [" & ".join(map(_written, row.cells)) + " \\\\\n" for row in block.rows]
    return "\n" + (title if block.title else "") + "".join(rows)


def latex_text(text: str) -> str:
    r"""Text that LaTeX prints as it is.

    >>> latex_text("50% of a_b")
    '50\\% of a\\_b'
    """
    kept = "".join(LATEX.get(character, character) for character in text)
    return " ".join(kept.replace("--", "-{}-").split())


def _written(cell: Cell) -> str:
    form = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}.get(cell.place, "{}")
    beside = " ".join(filter(None, (cell.error and f"±{cell.error}", cell.note)))
    marks = f"$^{{{latex_text(cell.marks).replace('$', '')}}}$" if cell.marks else ""
    return form.format(latex_text(_short(cell.text))) + f" {latex_text(beside)}" * bool(beside) + marks


def _short(text: str) -> str:
    return " ".join(brief(word) for word in text.split())
