"""cache: what is kept to be used again, and how it goes."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.errors import OutputError
from shortstack.machine.cache import KINDS, cache_directory, cache_entries, cache_limit, remove_entry
from shortstack.machine.formats import size
from shortstack.machine.tables import Column, Table


def cache(
    *,
    clear: Annotated[bool, Parameter(help="Delete the whole cache; make sure that no other run is using it.")] = False,
    as_json: Annotated[bool, Parameter(name="--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show or clear the cache.

    All of it can be recomputed. At $SHORTSTACK_CACHE_LIMIT the least recently used entries are removed.

    $ shortstack cache --clear
    """
    entries = list(cache_entries())
    limit = cache_limit()
    if clear:
        left = [entry.path for entry in entries if not remove_entry(entry.path)]
        if left:
            found = f"{len(left)} that stay, such as {left[0].name}"
            raise OutputError(found, expected="entries to remove", fix="check its permissions", where=left[0].parent)
    if as_json:
        listed = [{"kind": entry.kind, "bytes": entry.bytes, "used": entry.used} for entry in entries]
        return console.show_json(
            {"directory": str(cache_directory()), "limit_bytes": limit, "cleared": clear, "entries": listed}
        )
    rows = []
    for kind, what in KINDS.items():
        own = [entry.bytes for entry in entries if entry.kind == kind]
        rows.append((kind, what, len(own), sum(own)))
    rows.append(("all", "", len(entries), sum(entry.bytes for entry in entries)))
    columns = ("kind", Column("what", "text"), "entries", Column("size", "bytes"))
    console.show_table(Table.of(f"cache at {cache_directory()}{', cleared' if clear else ''}", columns, rows))
    console.show(f"It may grow to {size(limit)}.")
    return None
