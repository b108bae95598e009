"""A power cut after any call of a verb: what was not synced is gone, and what is left is whole, or goes on."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faults import VERBS, Server, check_after, digest_of, few, prepared, results_of, spread, why_not_traced
from power import CALLS, UNSEEN, Call, Disk, all_of_it, by_chance, calls, nothing_more

POINTS = max(2, int(os.environ.get("TORTURE_POINTS", "2")) // 4)
pytestmark = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced())


def replayed(fresh: Path, place: Path, done: list[Call]) -> Disk:
    """The disk after some calls; fresh: the folder before them."""
    shutil.rmtree(place)
    shutil.copytree(fresh, place)
    disk = Disk(place)
    for call in done:
        disk.take(call)
    shutil.rmtree(place)
    return disk


@pytest.mark.parametrize("name", VERBS)
def test_a_power_cut_leaves_what_is_whole(
    name: str, server: Server, tmp_path: Path, counted: Callable[[str], None]
) -> None:
    verb, trace, place = VERBS[name], tmp_path / "trace", tmp_path / "place"
    fresh = shutil.copytree(prepared(server, verb, place), tmp_path / "fresh")
    source = digest_of(place, ["m"])
    disk = Disk(place)
    ran = server.run(place, verb.words, trace=str(trace), calls=CALLS, all=True)
    assert ran.code == 0, ran.said
    expected, log = results_of(place, verb, ran.said), list(calls(trace))
    changing = [number for number, call in enumerate(log, start=1) if disk.take(call)]
    names = [path.name for path in place.iterdir()]
    real = {name: each for name, each in digest_of(place, names).items() if not name.endswith(UNSEEN)}
    shutil.rmtree(place)
    disk.left(place, all_of_it)
    assert digest_of(place, names) == real, "the replay is not what was done"
    shutil.rmtree(place)
    disk.left(place, nothing_more)
    left = results_of(place, verb, ran.said)
    assert {key: left.get(key) for key in expected} == expected, "a result did not last that the command had ended with"
    wrong = []
    for number in spread(changing, few(verb, POINTS)):
        for seed in (None, number):
            disk = replayed(fresh, place, log[:number])
            disk.left(place, nothing_more if seed is None else by_chance(random.Random(seed)))
            found = _broken_stores(place) or check_after(server, place, verb, source, expected)
            if found:
                wrong.append(f"call {number} of {len(log)} ({log[number - 1].name}), {seed}: {found}")
    counted(f"power cuts, {name}: {2 * min(few(verb, POINTS), len(changing))} among {len(changing)} calls")
    assert not wrong, "\n".join(wrong)


def _broken_stores(place: Path) -> str:
    """What SQLite says of copies of the stores, if not that they are well."""
    for database in place.rglob("*.sqlite"):
        with TemporaryDirectory() as folder:
            for path in database.parent.glob(f"{database.name}*"):
                shutil.copy(path, folder)
            with closing(sqlite3.connect(Path(folder) / database.name)) as connection:
                said = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if said != "ok":
            return f"{database.name}: {said}"
    return ""
