"""The tables as LaTeX, each on as many pages as it needs, no wider than the page."""

from __future__ import annotations

from collections.abc import Sequence

from shortstack.report.table import ABOVE, BELOW, NEAR, Block, Cell, Table

PACKAGES = ("booktabs", "graphicx", "rotating")
UPRIGHT = 96  # characters of a row: a wider table is turned
LINES, LINES_TURNED = 46, 28  # of a table that fits a page beside its caption
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedblright{}",
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
    r"""Every table as floats: best in bold, second best underlined.

    Load PACKAGES, and \input{FILE}. A long table goes on in further floats; a wide one is turned,
    and made smaller if it is wider than the page still.
    """
    return "\n\n".join(_float(table, blocks, first=not n) for table in tables for n, blocks in enumerate(_parts(table)))


def _turned(table: Table) -> bool:
    """Whether its rows are too long for an upright page."""
    columns = [[column.label, *(_plain(row.cells[n]) for row in table.rows)] for n, column in enumerate(table.columns)]
    widths = [max(map(len, cells)) + 2 for cells in [[row.label for row in table.rows], *columns]]
    return sum(widths) > UPRIGHT


def _parts(table: Table) -> list[list[Block]]:
    """The blocks of each page; one that does not fit whole begins a page, one longer than a page goes on."""
    room = LINES_TURNED if _turned(table) else LINES
    parts, left = [list[Block]()], room
    for block in table.blocks:
        title, rows = block.title, block.rows
        while rows:
            if parts[-1] and len(rows) + 2 > left:
                parts.append([])
                left = room
            parts[-1].append(Block(title, rows[: room - 2]))
            left -= len(parts[-1][-1].rows) + 2
            title, rows = f"{block.title}, continued" if block.title else "", rows[room - 2 :]
    return parts


def _float(table: Table, blocks: Sequence[Block], *, first: bool) -> str:
    kind = "sidewaystable" if _turned(table) else "table"
    said = " ".join([f"{table.title}.", table.finding, table.legend("Bold", "underlined")])
    return "\n".join(
        [
            rf"\begin{{{kind}}}",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_text(said if first else f'{table.title}, continued.')}}}",
            *([rf"\label{{tab:{table.key}}}"] if first else []),
            r"\vspace{6pt}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *_tabular(table, blocks),
            "}",
            rf"\end{{{kind}}}",
        ]
    )


def _tabular(table: Table, blocks: Sequence[Block]) -> list[str]:
    head = [table.heading, *(column.label for column in table.columns)]
    lines = [
        rf"\begin{{tabular}}{{l{''.join('l' if column.kind == 'text' else 'r' for column in table.columns)}}}",
        r"\toprule",
        " & ".join(latex_text(name) for name in head) + r" \\",
    ]
    for block in blocks:
        lines.append(r"\midrule")
        if block.title:
            lines.append(rf"\multicolumn{{{len(head)}}}{{l}}{{\emph{{{latex_text(block.title)}}}}} \\")
        lines += [
            " & ".join([latex_text(row.label), *(_written(cell) for cell in row.cells)]) + r" \\" for row in block.rows
        ]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def latex_text(text: str) -> str:
    r"""Text that LaTeX prints as it is.

    >>> latex_text("50% of a_b")
    '50\\% of a\\_b'
    """
    kept = "".join(LATEX.get(character, character) for character in text)
    return " ".join(kept.replace("--", "-{}-").split())


def _written(cell: Cell) -> str:
    text = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}.get(cell.judgement.place, "{}").format(latex_text(cell.text))
    error = rf" {{\scriptsize {latex_text(f'±{cell.error}')}}}" if cell.error else ""
    return text + error + (f"$^{{{latex_text(cell.marks).replace('$', '')}}}$" if cell.marks else "")


def _plain(cell: Cell) -> str:
    return f"{cell.text} ±{cell.error}{cell.marks}" if cell.error else cell.text
