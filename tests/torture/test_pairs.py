"""Two processes on one output, one cache, one study: one of them makes it, the other is told so, and nothing is mixed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import PREPARED, VERBS, Ran, Server, prepared, results_of

ROUNDS = int(os.environ.get("TORTURE_ROUNDS", "2"))
TOLD = ("no other process is making", "it exists", "does not exist yet")


@pytest.fixture(scope="module")
def servers(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    with Server(tmp_path_factory.mktemp("other")) as other:
        yield server, other


def both(servers: tuple[Server, Server], place: Path, words: tuple[str, ...], others: tuple[str, ...]) -> list[Ran]:
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(server.run, place, each) for server, each in zip(servers, (words, others), strict=True)]
        return [run.result() for run in runs]


@pytest.mark.parametrize("name", ["prune", "heal", "study", "shrink"])
def test_of_two_that_make_one_output_one_is_told(
    name: str, servers: tuple[Server, Server], tmp_path: Path, counted: Callable[[str], None]
) -> None:
    verb, place = VERBS[name], tmp_path / "place"
    fresh = shutil.copytree(prepared(servers[0], verb, place), tmp_path / "fresh")
    alone = servers[0].run(place, verb.words)
    assert alone.code == 0, alone.said
    expected, told = results_of(place, verb, alone.said), 0
    for _ in range(ROUNDS):
        shutil.rmtree(place)
        shutil.copytree(fresh, place)
        ran = both(servers, place, verb.words, verb.words)
        codes = sorted(each.code for each in ran)
        assert codes in ([0, 2], [0, 0]), [each.said[-800:] for each in ran]
        if codes == [0, 2]:
            told += 1
            assert any(words in each.said for each in ran if each.code for words in TOLD), ran
        else:
            assert name == "study", "one after the other: the second found all done"
        assert results_of(place, verb, "") == expected
        left = {path.name for path in place.iterdir()} - PREPARED - {verb.output}
        assert not left
    counted(f"two at once, {name}: {ROUNDS} rounds, {told} told")


def test_two_that_share_a_cache_give_what_one_gives(servers: tuple[Server, Server], tmp_path: Path) -> None:
    """The same frozen states and texts of the model's own are computed by both at once."""
    verb, place = VERBS["heal"], tmp_path / "place"
    prepared(servers[0], verb, place)
    words = verb.words[:-1]
    assert servers[0].run(place, (*words, "whole")).code == 0
    expected = (place / "whole" / "model.safetensors").read_bytes()
    for _ in range(ROUNDS):
        shutil.rmtree(place / "cache")
        ran = both(servers, place, (*words, "one"), (*words, "other"))
        assert [each.code for each in ran] == [0, 0], ran
        for name in ("one", "other"):
            assert (place / name / "model.safetensors").read_bytes() == expected
            shutil.rmtree(place / name)
        assert not list((place / "cache").rglob("*.partial-*"))
