"""cache: what is kept to be used again, and how it goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import flat
from shortstack.machine.cache import KINDS, CacheEntry, cache_directory, cache_entries, cache_limit
from shortstack.machine.formats import duration, size
from shortstack.machine.options import check_choice_of, option
from shortstack.machine.tables import Column, Table


@dataclass(frozen=True)
class Clearing:
    """Options of what to remove from the cache."""

    clear: bool = option(False, help="Remove everything; nothing that uses it may be running.")
    kind: str | None = option(None, help="Only this kind, as the table names it.")


def cache(
    *,
    clearing: Annotated[Clearing, flat()] = Clearing(),
    as_json: Annotated[bool, Parameter(name="--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what is kept to be used again, or clear it.

    All of it can be computed again. What was not used for longest goes by itself where $SHORTSTACK_CACHE_LIMIT is reached.

    $ shortstack cache --clear --kind models
    """
    if clearing.kind is not None:
        check_choice_of("kind", clearing.kind, KINDS)
    kinds = [clearing.kind] if clearing.kind else list(KINDS)
    entries = list(cache_entries(kinds))
    limit = cache_limit()
    if clearing.clear:
        for entry in entries:
            entry.remove()
    if as_json:
        rows = [{"kind": each.kind, "bytes": each.bytes, "used": each.used} for each in entries]
        return console.show_json(
            {"directory": str(cache_directory()), "limit_bytes": limit, "cleared": clearing.clear, "entries": rows}
        )
    state = "cleared" if clearing.clear else "kept"
    show_entries(kinds, entries, state)
    console.show(
        f"It may grow to {size(limit)}; $SHORTSTACK_CACHE_LIMIT sets another limit, $SHORTSTACK_CACHE another place."
    )
    if entries and not clearing.clear:
        of_kind = f" --kind {clearing.kind}" if clearing.kind else ""
        console.next_step(f"shortstack cache --clear{of_kind}")
    return None


def show_entries(kinds: Sequence[str], entries: Sequence[CacheEntry], state: str) -> None:
    """How much there is of each kind."""
    rows = []
    for kind in kinds:
        own = [entry for entry in entries if entry.kind == kind]
        last = f"{duration(time.time() - max(entry.used for entry in own))} ago" if own else None
        rows.append((kind, KINDS[kind], len(own), sum(entry.bytes for entry in own), last))
    rows.append(("all", "", len(entries), sum(entry.bytes for entry in entries), ""))
    columns = ("kind", Column("what", "text"), "entries", Column("size", "bytes"), "last used")
    console.show_table(Table.of(f"{cache_directory()}: {state}", columns, rows))
