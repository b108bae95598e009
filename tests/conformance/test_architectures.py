"""Every causal language model of the installed transformers: each cut is exact, or refused before a byte is written.

The outcome must be what docs/architectures.md says of it, where the page is of the installed release.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers
from architectures import NEEDS, TYPES, VARIANTS
from outcomes import CUTS, outcome
from page import EVERYWHERE, PAGE, head, line, listed, written

HERE = transformers.__version__
THERE = PAGE.read_text(encoding="utf-8").partition("of transformers ")[2].partition(",")[0]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in NEEDS)) for name in (*TYPES, *VARIANTS)]
)
def test_every_cut_is_exact_or_refused(name, tmp_path):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module)
    found = outcome(name, tmp_path)  # raises where a cut is neither
    if HERE == THERE:
        assert line(name, found) == listed()[name], "docs/architectures.md is stale: run `make architectures`"
        assert not found.writes or found.writes == written(name), "docs/architectures.md is stale"


@pytest.mark.skipif(HERE != THERE, reason=f"the page is of transformers {THERE}")
def test_the_page_lists_every_type_and_no_other():
    said = listed()
    assert sorted(said) == sorted([*TYPES, *VARIANTS])
    refused = [said[name].split(" | ")[1] for name in TYPES if said[name] != EVERYWHERE]
    no_other = [cuts for cuts in refused if cuts not in ("all", "not tried")]
    many = len(TYPES) - len(refused) + len(no_other)
    exact = [many - sum(cut in cuts.split(", ") for cuts in no_other) for cut in CUTS]
    assert PAGE.read_text(encoding="utf-8").startswith(head(exact))
