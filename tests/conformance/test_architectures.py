"""Every causal language model of the installed transformers: each cut is exact, or refused before a byte is written.

The outcome must be what docs/architectures.md says of it, where the page is of the installed release.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers
from architectures import NEEDS, TYPES, VARIANTS
from outcomes import CUTS, EXACT, outcome
from page import PAGE, head, line, rows, written

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
        assert rows({name: found}, (name,)) == [line(name)], "docs/architectures.md is stale: run `make architectures`"
        assert not found.writes or found.writes == written(name), "docs/architectures.md is stale"


@pytest.mark.skipif(HERE != THERE, reason=f"the page is of transformers {THERE}")
def test_the_page_lists_every_type_and_no_other():
    listed = [row.split(" | ")[0].removeprefix("| ") for row in PAGE.read_text(encoding="utf-8").splitlines()]
    assert [name for name in listed if name in {*TYPES, *VARIANTS}] == [*TYPES, *VARIANTS]
    types = [row.split(" | ")[1 : len(CUTS) + 1] for row in map(line, TYPES) if row]
    exact = [sum(cells[cut] == EXACT for cells in types) for cut in range(len(CUTS))]
    assert PAGE.read_text(encoding="utf-8").startswith(head(exact))
