"""Killed, or failed by the disk, at any call by which a verb writes: one message, the source untouched, and what is there is
whole; the same after a power cut, of which nothing is left that was not synced. A second run ends as a whole one.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faults import (
    EVERY_VERB,
    Server,
    Whole,
    check_after,
    check_said,
    digest_of,
    few,
    points,
    results_of,
    spread,
    why_not_traced,
)
from power import UNSEEN, Disk, all_of_it, by_chance, calls, nothing_more

POINTS = int(os.environ.get("TORTURE_POINTS", "0"))
KILLS, ERRORS = POINTS or 2, POINTS // 4 or 1
FAULTS = {
    "signal=SIGKILL": 0.25,
    "error=ENOSPC": 0.2,
    "error=EIO": 0.5,
    "error=EROFS": 0.8,
}  # each with its first point
traced = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced())


@traced
@pytest.mark.parametrize("fault", FAULTS)
@EVERY_VERB
def test_a_fault_at_any_call_leaves_what_is_whole(
    name: str, fault: str, server: Server, whole: Whole, counted: Callable[[str], None]
) -> None:
    kills, ends, wrong = "SIGKILL" in fault, Counter[int](), []
    found = points(whole, first_thread=not kills)
    tried = spread(found, few(whole.verb, KILLS if kills else ERRORS), FAULTS[fault])
    for turn, (call, number) in enumerate(tried):
        lasting = "" if kills or not turn % 2 or call == "write" else "+"  # from there on; what is said is written, too
        inject = f"{call}:{fault}:when={number}{lasting}"
        ran = server.run(whole.again(), whole.verb.words, trace=os.devnull, inject=inject)
        ends[ran.code] += 1
        if said := ("" if kills else check_said(whole, ran)) or check_after(server, whole):
            wrong.append(f"{inject}: {said}")
    counted(f"{fault}, {name}: {dict(ends)} of {len(tried)}")
    assert not wrong, "\n".join(wrong)
    assert not kills or ends[-9] >= len(tried) // 3, "the faults hit nothing"


@traced
@EVERY_VERB
def test_a_power_cut_leaves_what_is_whole(
    name: str, server: Server, whole: Whole, counted: Callable[[str], None]
) -> None:
    place, log = whole.place, list(calls(whole.trace))
    disk = Disk(whole.again())
    changing = [number for number, call in enumerate(log, start=1) if disk.take(call)]
    shutil.rmtree(place)
    disk.left(place, all_of_it)
    real = {name: each for name, each in whole.after.items() if not name.endswith(UNSEEN)}
    assert digest_of(place, [path.name for path in place.iterdir()]) == real, "the replay is not what was done"
    shutil.rmtree(place)
    disk.left(place, nothing_more)
    left = results_of(place, whole.verb, whole.said)
    assert {key: left.get(key) for key in whole.expected} == whole.expected, "a result did not last that was said"
    wrong, tried = [], spread(changing, few(whole.verb, ERRORS), 0.5)
    for number in tried:
        for seed in (None, number):
            disk = Disk(whole.again())
            for call in log[:number]:
                disk.take(call)
            shutil.rmtree(place)
            disk.left(place, nothing_more if seed is None else by_chance(random.Random(seed)))
            if found := _broken_stores(place) or check_after(server, whole):
                wrong.append(f"call {number} of {len(log)} ({log[number - 1].name}), {seed}: {found}")
    counted(f"power cuts, {name}: {2 * len(tried)} among {len(changing)} calls")
    assert not wrong, "\n".join(wrong)


def _broken_stores(place: Path) -> str:
    """Return what SQLite says of copies of the stores, if not that they are well."""
    for database in place.rglob("*.sqlite"):
        with TemporaryDirectory() as folder:
            for path in database.parent.glob(f"{database.name}*"):
                shutil.copy(path, folder)
            with closing(sqlite3.connect(Path(folder) / database.name)) as connection:
                said = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if said != "ok":
            return f"{database.name}: {said}"
    return ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes in memory, or gives the one that is there another size."""
    place = tmp_path / "place"
    place.mkdir()

    def sized(nbytes: int) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        asked = ["mount", "-t", "tmpfs", "-o", f"{again}size={nbytes}", "none", str(place)]
        if (said := subprocess.run(asked, capture_output=True, text=True, check=False)).returncode:
            pytest.skip(f"no disk may be mounted here: {said.stderr}")
        return place

    yield sized
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


@EVERY_VERB
def test_a_disk_that_is_too_small_is_said_once(
    name: str,
    server: Server,
    whole: Whole,
    tmp_path: Path,
    counted: Callable[[str], None],
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "cache", tmp_path / "cache")  # which leaves more free than these disks have
    wrong, ends, sizes = [], Counter[int](), min(ERRORS, 8)
    for part in range(sizes):
        place = small_disk(2**28)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(whole.fresh, place, dirs_exist_ok=True)
        before = _used(place)
        small_disk(before + 4096 * max(1, (part + 1) * whole.pages // (sizes + 1)))
        ran = server.run(place, whole.verb.words)
        ends[ran.code] += 1
        small_disk(2**28)
        found = "" if ran.code == 0 else check_said(whole, ran)
        if found := found or check_after(server, whole, place):
            wrong.append(f"{part}: {found}")
    counted(f"{name}, small disks: {dict(ends)}")
    assert not wrong, "\n".join(wrong)


def _used(place: Path) -> int:
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_limit_on_the_size_of_files_is_a_full_disk(server: Server, whole_of: Callable[[str], Whole]) -> None:
    whole = whole_of("prune")
    ran = server.run(whole.again(), whole.verb.words, limits={"RLIMIT_FSIZE": (50_000, 50_000)})
    assert ran.code in (1, 2)
    assert len(ran.errors) == 1, ran.said
    assert re.search("File too large", ran.said)
    assert check_after(server, whole) == ""
