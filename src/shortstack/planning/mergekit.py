"""Plans as mergekit's passthrough slices, whose ranges end before their last number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from shortstack.planning.plans import Plan


def to_mergekit(plan: Plan, model: str) -> str:
    """The layers that a plan keeps as mergekit slices, which copy them as they are stored.

    >>> print(to_mergekit(Plan(8, (3, 4), "layers"), "org/name"), end="")
    slices:
    - sources:
      - model: org/name
        layer_range: [0, 3]
    - sources:
      - model: org/name
        layer_range: [5, 8]
    merge_method: passthrough
    """
    slices = [{"sources": [{"model": model, "layer_range": [*run]}]} for run in _runs(plan.kept)]
    document = {"slices": slices, "merge_method": "passthrough"}
    return str(yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=10**6))


def _runs(layers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending layers as ranges that end before their last number.

    >>> [*_runs([0, 1, 4])]
    [(0, 2), (4, 5)]
    """
    firsts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer + 1 for layer in layers if layer + 1 not in layers]
    return zip(firsts, ends, strict=True)
