"""SIGKILL at any call by which a verb writes: what is there is whole, and a second run ends as a whole one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import VERBS, Server, check_after, digest_of, few, points, prepared, results_of, spread, why_not_traced

POINTS = int(os.environ.get("TORTURE_POINTS", "3"))
pytestmark = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced())


@pytest.mark.parametrize("name", VERBS)
def test_a_kill_at_any_call_leaves_what_is_whole(
    name: str, server: Server, tmp_path: Path, counted: Callable[[str], None]
) -> None:
    verb, trace, place = VERBS[name], tmp_path / "trace", tmp_path / "place"
    fresh = shutil.copytree(prepared(server, verb, place), tmp_path / "fresh")
    source = digest_of(place, ["m"])
    ran = server.run(place, verb.words, trace=str(trace))
    assert ran.code == 0, ran.said
    expected, killed = results_of(place, verb, ran.said), 0
    calls = spread(points(trace, place), few(verb, POINTS))
    wrong = []
    for call, number in calls:
        shutil.rmtree(place)
        shutil.copytree(fresh, place)
        ran = server.run(place, verb.words, trace=str(trace), inject=f"{call}:signal=SIGKILL:when={number}")
        killed += ran.code == -9
        if found := check_after(server, place, verb, source, expected):
            wrong.append(f"{call} {number}: {found}")
    counted(f"SIGKILL, {name}: {killed} of {len(calls)} killed")
    assert not wrong, "\n".join(wrong)
    assert killed >= len(calls) // 3, "the faults hit nothing"
