"""Results that pass from stage to stage of shrink(), and its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.evaluation import EvalResult
from shortstack.healing import Healing
from shortstack.machine.files import to_jsonable
from shortstack.machine.tables import Table, Tabled
from shortstack.planning import Plan
from shortstack.shrinking.reference import Speed
from shortstack.shrinking.retention import TriedCut

NO_HEALING = "no healing"  # as it is said to be left out


@dataclass(frozen=True)
class Measured:
    """The measurements of a model. answers: to the prompts; left_out: to fit the time; seconds: the time they took."""

    evaluation: EvalResult
    answers: tuple[str, ...]
    left_out: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Unpruned:
    """The model that is made shorter, as it was measured."""

    checkpoint: Checkpoint
    measured: Measured


@dataclass(frozen=True)
class Candidate:
    """A cut, and what was made of it. repair: empty where it was not repaired; healing: None where it was not healed.

    left_out: what there was less of than was wanted, in words; tried: cuts made before, where a share is to be kept.
    """

    checkpoint: Checkpoint
    plan: Plan
    repair: Mapping[str, Any]
    healing: Healing | None
    measured: Measured
    speed: Speed
    left_out: tuple[str, ...]
    tried: tuple[TriedCut, ...] = ()


@dataclass(frozen=True, repr=False)
class Shrunk(Tabled):
    """The result of shrink(). verdict: keep it or not; reasons: the numbers that say so.

    plan: `compared` has the cuts that were compared, and `why` says what by. base, last: the evaluations of the unpruned
    model and of this one. left_out: what there was less of than was wanted, to fit the time. tried: the cuts that were
    tried where a share was to be kept. recipe: with all amounts, so that command repeats it bit for bit, without a clock.
    """

    output: Path
    verdict: str
    reasons: tuple[str, ...]
    why: str
    plan: Plan
    repair: Mapping[str, Any]
    healing: Healing | None
    base: EvalResult
    last: EvalResult
    answers: Sequence[Mapping[str, str]]
    speed: Speed
    left_out: tuple[str, ...]
    tried: tuple[TriedCut, ...]
    seconds: float
    recipe: str
    command: str

    def table(self) -> Table:
        """Return a table of both models' results."""
        return replace(self.last, base=self.base).table()

    def tables(self) -> list[Table]:
        """Return the tables of both models' results and of the cuts that were compared."""
        return [self.table(), *self.plan.tables()[1:]]

    def steps(self) -> dict[str, dict[str, Any]]:
        """Return the result of each step by its role, as a study's trials have them."""
        plan = self.plan.to_dict()
        results = {"evaluate_base": self.base.to_dict(), "plan": plan, "prune": {**plan, "repair": self.repair}}
        if self.healing is None:
            return {**results, "evaluate_pruned": self.last.to_dict()}
        return {**results, "heal": self.healing.to_dict(), "evaluate_healed": self.last.to_dict()}

    def to_dict(self) -> dict[str, Any]:
        names = (
            "output",
            "verdict",
            "reasons",
            "why",
            "answers",
            "speed",
            "left_out",
            "tried",
            "seconds",
            "command",
        )
        data = {name: to_jsonable(getattr(self, name)) for name in names}
        return {**data, "compared": dict(self.plan.candidates or {}), "steps": self.steps()}
