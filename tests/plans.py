"""Plans that need no model: named layers, or the last ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shortstack.planning import Plan, Selection, plan_of
from shortstack.planning.selector import plan_from_scores
from shortstack.scoring import Scores


def plan(source: Scores | int, *, layers: str | Sequence[int] | None = None, seed: int = 0, **how: Any) -> Plan:
    """The plan of named layers or a selection; of a number of layers the last ones go where nothing else is said."""
    if isinstance(source, int):
        if layers is not None:
            return plan_of(layers, source)
        source, how = Scores(source, {}), {"metric": "reverse", **how}
    return plan_from_scores(source, Selection(layers=layers, **how), seed=seed)
