"""Write the tables of the pages that say what there is to name: options of verbs, metrics, strategies, healing methods.

`make tables` writes them between their heading and the next paragraph; tests/test_docs.py fails while a page is behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shortstack.cli.verbs import VERBS, app
from shortstack.healing import METHODS
from shortstack.planning import STRATEGIES
from shortstack.scoring import METRICS

DOCS = Path(__file__).parents[1] / "docs"
Rows = list[tuple[str, ...]]


def options(verb: str) -> Rows:
    """Every option of a verb: its spellings, its default, and its help."""
    return [
        (", ".join(f"`{name}`" for name in _spellings(each)), _default(each), _cell(each.parameter.help))
        for each in app()[verb].assemble_argument_collection()
        if each.parse and each.names[0].startswith("-")
    ]


def _spellings(option: Any) -> list[str]:
    """How an option is spelled: --no- only where it may be on."""
    off = option.field_info.default is False
    return [name for name in option.names if not (off and name.startswith("--no-"))]


def _default(option: Any) -> str:
    default = option.field_info.default
    return "required" if option.required else "none" if default is None else "off" if default is False else str(default)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", r"\|")


def metrics() -> Rows:
    return [(f"`{each.name}`", each.feed, _cell(each.formula), each.paper) for each in METRICS.values()]


def strategies() -> Rows:
    return [(f"`{each.name}`", each.feed, each.summary, each.paper) for each in STRATEGIES.values()]


def methods() -> Rows:
    return [(f"`{each.name}`", each.trains, each.paper) for each in METHODS.values()]


def tables() -> Iterator[tuple[Path, str, Sequence[str], Callable[[], Rows]]]:
    """Each table: its page, the heading that it stands under, the names of its columns, and its rows."""
    for verb in VERBS:
        yield DOCS / f"{verb}.md", "Options", ("option", "default", "meaning"), lambda verb=verb: options(verb)
    yield DOCS / "ls.md", "Metrics", ("metric", "feed", "score", "paper"), metrics
    yield DOCS / "ls.md", "Strategies", ("strategy", "feed", "what goes", "paper"), strategies
    yield DOCS / "ls.md", "Healing methods", ("method", "trains", "paper"), methods


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
