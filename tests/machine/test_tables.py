"""Tables as a terminal, a notebook, Markdown, CSV and pandas show them."""

import csv
import html
import io
import re

import pytest
from markdown_it import MarkdownIt

from shortstack.cli.console import show_table
from shortstack.machine.formats import MISSING
from shortstack.machine.tables import Cell, Column, Table, markdown_text

TABLE = Table.of(
    "<b>",
    ("name", Column("loss", "loss", "nats"), "n", "empty"),
    [
        ("<script>", Cell(1.25, stderr=0.0625), 1234, None),
        ("a|b", 2.5, None, None),
        ("yes", Cell(0.5, note="best"), 7, None),
    ],
    caption="A caption.",
    notes=["A note."],
)
TEXTS = [["<script>", "1.2500", "1,234"], ["a|b", "2.5000", MISSING], ["yes", "0.5000", "7"]]


def test_cells_have_the_kind_of_their_column_and_empty_columns_go():
    assert [[cell.text for cell in row.cells] for row in TABLE.rows] == TEXTS
    assert TABLE.rows[0].cells[1].said == "1.2500 ± 0.0625"
    assert TABLE.words == [True, False, False]


def test_html_is_escaped():
    rows = TABLE.html().split("<tr>")[1:]
    cells = [[html.unescape(cell) for cell in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]
    assert cells[0] == ["name", "loss (nats)", "n"]
    assert [row[0] for row in cells[1:]] == [row[0] for row in TEXTS]
    assert cells[1][1] == "1.2500 ± 0.0625"
    assert cells[3][1] == "0.5000 best"
    assert "<script>" not in TABLE.html()
    assert "<caption>&lt;b&gt;</caption>" in TABLE.html()


def test_csv_and_pandas_have_values_in_full():
    head, *rows = csv.reader(io.StringIO(TABLE.csv()))
    assert head == ["block", "name", "loss", "loss s.e.", "n"]
    assert rows[0] == ["", "<script>", "1.25", "0.0625", "1234"]
    frame = TABLE.pandas()
    assert list(frame["loss"]) == [1.25, 2.5, 0.5]
    assert frame["loss s.e."][0] == 0.0625


def test_markdown_is_a_table_of_the_same_texts():
    tokens = MarkdownIt("commonmark").enable("table").parse(TABLE.markdown())
    cells = [token.content for token in tokens if token.type == "inline"]
    assert cells[:3] == ["name", "loss", "n"]
    assert "1.2500 ±0.0625" in cells
    assert "1,234" in cells


def test_text_in_markdown_is_no_markup():
    harm = "~~old~~ see https://evil.example or www.evil.example $a$ @me `code` [x](//y) <b> # no"
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(f"| {markdown_text(harm)} | |\n|---|---|\n")
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} == {"text"}
    assert "".join(child.content for child in inline) == harm
    assert not re.search(r"(?<!\\)[~@$]|\w://|www\.", markdown_text(harm)), "what GitHub and pandoc make markup of"


@pytest.mark.parametrize("columns", [20, 30, 60])
def test_terminal_shows_all_cells_in_its_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    show_table(TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert all(any(text in line for line in lines) for row in TEXTS for text in row)
    assert max(map(len, (line for line in lines if line.startswith("│")))) <= max(columns, 33)
    assert lines[-2:] == ["A caption.", "A note."]
