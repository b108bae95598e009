"""Plans as mergekit's passthrough slices, whose ranges end before their last number."""

from __future__ import annotations

from itertools import pairwise

import yaml

from shortstack.planning.plans import Plan


def to_mergekit(plan: Plan, model: str) -> str:
    """Write the YAML that makes mergekit copy the layers that a plan keeps.

    It names no dtype: every tensor stays in its own.

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
    name = str(yaml.safe_dump(model, width=10**6)).removesuffix("\n").removesuffix("\n...")
    slices = "".join(
        f"- sources:\n  - model: {name}\n    layer_range: [{before + 1}, {end}]\n"
        for before, end in pairwise([-1, *sorted(plan.removed), plan.layers])
        if before + 1 < end
    )
    return f"slices:\n{slices}merge_method: passthrough\n"
