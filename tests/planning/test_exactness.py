"""The nearest exact cut, against trying every cut there is."""

from __future__ import annotations

import itertools

import architectures
import pytest

from plans import plan
from shortstack.architecture.anatomy import shortened
from shortstack.architecture.selfcheck import check_cut
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError
from shortstack.planning.exactness import aligned


def exact(checkpoint: Checkpoint, removed: tuple[int, ...]) -> bool:
    wanted, path = plan(8, layers=removed), checkpoint.layer_names.path
    try:
        config = shortened(checkpoint.config, checkpoint.blueprint, checkpoint.anatomy, wanted.kept, path)
        check_cut(config, checkpoint.blueprint, checkpoint.anatomy, wanted.kept, checkpoint.directory)
    except ArchitectureError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("jamba", (1, 4)), ("rwkv", (3, 4)), ("gemma4_text", (3, 4)), ("gpt_neox_japanese", (6, 7))],
)
def test_the_nearest_exact_cut_is_as_near_as_any(name, wanted, tmp_path):
    checkpoint = Checkpoint.open(architectures.make(name, tmp_path / "source"))
    found = aligned(checkpoint, plan(8, layers=wanted))
    possible = [cut for cut in itertools.combinations(range(8), 2) if exact(checkpoint, cut)]
    assert found.removed in possible
    exchanged = min(len(set(cut) ^ set(wanted)) for cut in possible)
    assert len(set(found.removed) ^ set(wanted)) == exchanged
    assert found.removed == wanted or found.strategy.endswith("moved to where the cut is exact")


def test_a_plan_is_moved_only_to_what_is_allowed(tmp_path):
    checkpoint = Checkpoint.open(architectures.make("jamba", tmp_path / "source"))
    free = aligned(checkpoint, plan(8, layers=(1, 4))).removed
    found = aligned(checkpoint, plan(8, layers=(1, 4)), allowed=lambda cut: max(cut) - min(cut) == 1).removed
    assert free[1] - free[0] > 1
    assert found[1] - found[0] == 1
    assert exact(checkpoint, found)
    assert aligned(checkpoint, plan(8, layers=(1, 4)), allowed=lambda _cut: False) is None
