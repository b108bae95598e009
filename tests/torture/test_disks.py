"""A disk that is full, fails or cannot be written, at any call: one message, the source untouched, nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import (
    PREPARED,
    VERBS,
    Server,
    check_after,
    digest_of,
    empty,
    few,
    points,
    prepared,
    results_of,
    spread,
    why_not_traced,
)

POINTS = max(2, int(os.environ.get("TORTURE_POINTS", "2")) // 4)
ERRORS = ("ENOSPC", "EIO", "EROFS")
pytestmark = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced())


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", VERBS)
def test_a_failing_call_is_said_once_and_leaves_what_is_whole(
    name: str, error: str, server: Server, tmp_path: Path, counted: Callable[[str], None]
) -> None:
    verb, trace, place = VERBS[name], tmp_path / "trace", tmp_path / "place"
    fresh = shutil.copytree(prepared(server, verb, place), tmp_path / "fresh")
    source = digest_of(place, ["m"])
    ran = server.run(place, verb.words, trace=str(trace))
    assert ran.code == 0, ran.said
    expected, ends = results_of(place, verb, ran.said), Counter[int]()
    wrong = []
    for turn, (call, number) in enumerate(spread(points(trace, place, first_thread=True), few(verb, POINTS))):
        lasting = "+" if turn % 2 and call != "write" else ""  # from there on; what is said is written, too
        empty(place)
        shutil.copytree(fresh, place, dirs_exist_ok=True)
        ran = server.run(place, verb.words, trace=str(trace), inject=f"{call}:error={error}:when={number}{lasting}")
        ends[ran.code] += 1
        found = ""
        if ran.code == 0:  # what was not written is no part of the result: a state to go on from, a mark of use
            found = "" if results_of(place, verb, ran.said) == expected else "it ends well with another result"
        elif ran.code not in (1, 2) or "Traceback" in ran.said:
            found = f"no error of ours: {ran.said[-1500:]}"
        elif len(ran.errors) != 1 and not (
            name == "study" and "Failed: " in ran.said
        ):  # which says what failed, and goes on
            found = f"{len(ran.errors)} messages: {ran.said[-1500:]}"
        found = found or check_after(server, place, verb, source, expected)
        if found:
            wrong.append(f"{call} {number}{lasting}: {found}")
    counted(f"{name}, {error}: {dict(ends)}")
    assert not wrong, "\n".join(wrong)


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


@pytest.mark.parametrize("name", VERBS)
def test_a_disk_that_is_too_small_is_said_once(
    name: str,
    server: Server,
    tmp_path: Path,
    counted: Callable[[str], None],
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "cache", tmp_path / "cache")  # which leaves more free than these disks have
    verb = VERBS[name]
    fresh = prepared(server, verb, tmp_path / "fresh")
    place = small_disk(2**28)
    shutil.copytree(fresh, place, dirs_exist_ok=True)
    source, before = digest_of(place, ["m"]), _used(place)
    ran = server.run(place, verb.words)
    assert ran.code == 0, ran.said
    expected, needed = results_of(place, verb, ran.said), _used(place) - before
    wrong, ends = [], Counter[int]()
    for part in range(min(POINTS, 8)):
        small_disk(2**28)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        empty(place)
        shutil.copytree(fresh, place, dirs_exist_ok=True)
        small_disk(before + needed * part // min(POINTS, 8) + 4096)
        ran = server.run(place, verb.words)
        ends[ran.code] += 1
        small_disk(2**28)
        found = ""
        if ran.code not in (0, 1, 2) or "Traceback" in ran.said:
            found = f"no error of ours: {ran.said[-1500:]}"
        elif ran.code and len(ran.errors) != 1:
            found = f"{len(ran.errors)} messages: {ran.said[-1500:]}"
        if found := found or check_after(server, place, verb, source, expected):
            wrong.append(f"{part}: {found}")
    counted(f"{name}, small disks: {dict(ends)}")
    assert not wrong, "\n".join(wrong)


def _used(place: Path) -> int:
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_limit_on_the_size_of_files_is_a_full_disk(server: Server, tmp_path: Path) -> None:
    verb, place = VERBS["prune"], tmp_path / "place"
    prepared(server, verb, place)
    ran = server.run(place, verb.words, limits={"RLIMIT_FSIZE": (50_000, 50_000)})
    assert ran.code in (1, 2)
    assert len(ran.errors) == 1, ran.said
    assert re.search("File too large", ran.said)
    assert {path.name for path in place.iterdir()} <= PREPARED
