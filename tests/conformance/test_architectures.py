"""Every causal language model of the installed transformers: each cut is exact, or refused before a byte is written.

The outcome must be what docs/architectures.md says of it, where the page is of the installed release. Every cut is tried
by `make test-slow`, two of them always.
"""

from __future__ import annotations

import pytest
import transformers
from architectures import NEEDS, TYPES, VARIANTS
from outcomes import CUTS, EXACT, outcome
from page import PAGE, head, line, listed, refused_cuts, written

HERE = transformers.__version__
pytestmark = pytest.mark.usefixtures("one_thread")
THERE = PAGE.read_text(encoding="utf-8").partition("of transformers ")[2].partition(",")[0]


@pytest.mark.parametrize(
    "cuts", [("first", "scattered"), pytest.param(tuple(CUTS), marks=pytest.mark.slow)], ids=["two cuts", "every cut"]
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in NEEDS)) for name in (*TYPES, *VARIANTS)]
)
def test_every_cut_is_exact_or_refused(name, cuts, tmp_path):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module)
    found = outcome(name, tmp_path, cuts)  # raises where a cut is neither
    if HERE != THERE:
        return
    stale = "docs/architectures.md is stale: run `make architectures`"
    if len(cuts) == len(CUTS):
        assert line(name, found) == listed()[name], stale
    else:
        refused = {cut for cut, how in found.cuts.items() if how != EXACT}
        assert refused == refused_cuts(name) & {*found.cuts}, stale
    assert not found.writes or found.writes == written(name), stale


@pytest.mark.skipif(HERE != THERE, reason=f"the page is of transformers {THERE}")
def test_the_page_lists_every_type_and_no_other():
    said = listed()
    assert sorted(said) == sorted([*TYPES, *VARIANTS])
    exact = [sum(cut not in refused_cuts(name) for name in TYPES) for cut in CUTS]
    assert PAGE.read_text(encoding="utf-8").startswith(head(exact))
