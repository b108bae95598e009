"""Two processes on one output, one cache, one study: one of them makes it, the other is told so, and nothing is mixed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import PREPARED, Ran, Server, Whole, results_of

ROUNDS = int(os.environ.get("TORTURE_ROUNDS", "1"))
SAID = ("no other process is making", "it exists", "does not exist yet")
Both = Callable[[Path, list[list[str]]], list[Ran]]


@pytest.fixture(scope="module")
def both(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Runs two commands in a folder at once."""
    with Server(tmp_path_factory.mktemp("other")) as other, ThreadPoolExecutor(2) as pool:
        yield lambda place, words: list(pool.map(lambda one, each: one.run(place, each), (server, other), words))


@pytest.mark.parametrize("name", ["prune", "heal", "study", "shrink"])
def test_of_two_that_make_one_output_one_is_told(
    name: str, both: Both, whole: Whole, counted: Callable[[str], None]
) -> None:
    told = 0
    for _ in range(ROUNDS):
        ran = both(whole.again(), [whole.verb.words, whole.verb.words])
        codes = sorted(each.code for each in ran)
        assert codes in ([0, 2], [0, 0]), [each.said[-800:] for each in ran]
        if codes == [0, 2]:
            told += 1
            assert any(words in each.said for each in ran if each.code for words in SAID), ran
        else:
            assert name == "study", "one after the other: the second found all done"
        assert results_of(whole.place, whole.verb, "") == whole.expected
        assert {path.name for path in whole.place.iterdir()} <= PREPARED | {whole.verb.output}
    counted(f"two at once, {name}: {ROUNDS} rounds, {told} told")


def test_two_that_share_a_cache_give_what_one_gives(both: Both, whole_of: Callable[[str], Whole]) -> None:
    """The same frozen states and texts of the model's own are computed by both at once."""
    whole = whole_of("heal")
    words = whole.verb.words[:-1]
    for _ in range(ROUNDS):
        place = whole.again()
        ran = both(place, [[*words, "one"], [*words, "other"]])
        assert [each.code for each in ran] == [0, 0], ran
        for name in ("one", "other"):
            shutil.rmtree(place / "out", ignore_errors=True)
            (place / name).rename(place / "out")
            assert results_of(place, whole.verb, "") == whole.expected
        assert not list((place / "cache").rglob("*.partial-*"))
