"""Plans that need no model: named layers, or the last ones."""

from __future__ import annotations

from typing import Any

from shortstack.machine.device import Compute
from shortstack.planning import Choice, Plan, choose
from shortstack.scoring import Scores


def plan(source: Scores | int, *, metric: str | None = None, seed: int = 0, **how: Any) -> Plan:
    """The plan of a choice; of a number of layers the last ones go where nothing else is said."""
    last = isinstance(source, int) and "layers" not in how
    return choose(source, Choice(metric or ("reverse" if last else None), **how), compute=Compute(seed=seed)).plan
