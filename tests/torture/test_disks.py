"""A disk that is full, fails or cannot be written, at any call: one message, the source untouched, nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from faults import VERBS, Server, check_after, digest_of, points, prepared, results_of, spread, why_not_traced

POINTS = int(os.environ.get("TORTURE_POINTS", "2"))
ERRORS = ("ENOSPC", "EIO", "EROFS")
pytestmark = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced())


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", VERBS)
def test_a_failing_call_is_said_once_and_leaves_what_is_whole(
    name: str, error: str, server: Server, tmp_path: Path
) -> None:
    verb, trace, place = VERBS[name], tmp_path / "trace", tmp_path / "place"
    fresh = shutil.copytree(prepared(server, verb, place), tmp_path / "fresh")
    source = digest_of(place, ["m"])
    ran = server.run(place, verb.words, trace=str(trace))
    assert ran.code == 0, ran.said
    expected, ends = results_of(place, verb), Counter[int]()
    wrong = []
    for call, number in spread(points(trace, place, first_thread=True), POINTS):
        shutil.rmtree(place)
        shutil.copytree(fresh, place)
        ran = server.run(place, verb.words, trace=str(trace), inject=f"{call}:error={error}:when={number}")
        ends[ran.code] += 1
        found = ""
        if ran.code == 0:  # what was not written is no part of the result: a state to go on from, a mark of use
            found = "" if results_of(place, verb) == expected else "it ends well with another result"
        elif ran.code not in (1, 2) or "Traceback" in ran.said:
            found = f"no error of ours: {ran.said[-1500:]}"
        elif len(ran.errors) != 1 and name != "study":
            found = f"{len(ran.errors)} messages: {ran.said[-1500:]}"
        found = found or check_after(server, place, verb, source, expected)
        if found:
            wrong.append(f"{call} {number}: {found}")
    print(f"{name}, {error}: {dict(ends)}")
    assert not wrong, "\n".join(wrong)


def test_a_limit_on_the_size_of_files_is_a_full_disk(server: Server, tmp_path: Path) -> None:
    verb, place = VERBS["prune"], tmp_path / "place"
    prepared(server, verb, place)
    ran = server.run(place, verb.words, limits={"RLIMIT_FSIZE": (50_000, 50_000)})
    assert ran.code in (1, 2)
    assert len(ran.errors) == 1, ran.said
    assert re.search("File too large", ran.said)
    assert sorted(path.name for path in place.iterdir()) == ["m", "study.yaml"]
