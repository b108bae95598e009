"""The kinds of steps. A kind is one class: its code number, its inputs, its call, its command and its cost."""

from shortstack.study.kinds.evaluate import EvaluateOptions, EvaluateStep
from shortstack.study.kinds.heal import HealStep, TurnsStep
from shortstack.study.kinds.plan import PlanStep
from shortstack.study.kinds.profile import ProfileOptions, ProfileStep
from shortstack.study.kinds.prune import PruneStep
from shortstack.study.kinds.score import ScoreStep

KINDS = tuple(step.kind for step in (ScoreStep, PlanStep, PruneStep, HealStep, TurnsStep, EvaluateStep, ProfileStep))

__all__ = [
    "KINDS",
    "EvaluateOptions",
    "EvaluateStep",
    "HealStep",
    "PlanStep",
    "ProfileOptions",
    "ProfileStep",
    "PruneStep",
    "ScoreStep",
    "TurnsStep",
]
