"""Write the tables of the pages that say what there is to name: metrics, strategies, healing methods.

`make tables` writes them between their heading and the next paragraph; tests/test_docs.py fails while a page is behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shortstack.healing import METHODS
from shortstack.planning import STRATEGIES
from shortstack.scoring import METRICS

DOCS = Path(__file__).parents[1] / "docs"
Rows = list[tuple[str, ...]]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def metrics() -> Rows:
    return [(f"`{each.name}`", each.feed, _cell(each.formula), each.paper) for each in METRICS.values()]


def strategies() -> Rows:
    return [(f"`{each.name}`", each.feed, each.summary, each.paper) for each in STRATEGIES.values()]


def methods() -> Rows:
    return [(f"`{each.name}`", each.trains, each.paper) for each in METHODS.values()]


def tables() -> Iterator[tuple[Path, str, Sequence[str], Callable[[], Rows]]]:
    """Each table: its page, the heading that it stands under, the names of its columns, and its rows."""
    yield DOCS / "list.md", "Metrics", ("metric", "feed", "score", "paper"), metrics
    yield DOCS / "list.md", "Strategies", ("strategy", "feed", "what goes", "paper"), strategies
    yield DOCS / "list.md", "Healing methods", ("method", "trains", "paper"), methods


def written(columns: Sequence[str], rows: Rows) -> str:
    """Rows as a table of Markdown."""
    head, *lines = (f"| {' | '.join(cells)} |\n" for cells in (columns, *rows))
    return head + "|" + "---|" * len(columns) + "\n" + "".join(lines)


def behind() -> dict[Path, str]:
    """The pages whose tables are not what they should be, with the text they should have."""
    pages: dict[Path, str] = {}
    for page, heading, columns, rows in tables():
        text = pages.get(page) or page.read_text(encoding="utf-8")
        place = re.compile(rf"(^## {re.escape(heading)}\n(?:(?!\||## ).*\n)*)((?:\|.*\n)*)", re.MULTILINE)
        assert place.search(text), f"{page.name} has no heading {heading}"
        start, end = place.search(text).span(2)  # type: ignore[union-attr]
        pages[page] = text[:start] + written(columns, rows()) + text[end:]
    return {page: text for page, text in pages.items() if text != page.read_text(encoding="utf-8")}


if __name__ == "__main__":
    for page, text in behind().items():
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page}")
