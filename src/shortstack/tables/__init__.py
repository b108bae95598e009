"""The results of the verbs as tables, in files named like those of the verbs."""

from shortstack.tables.choosing import show_plan, show_scores, show_sweep
from shortstack.tables.cutting import show_repair, show_verification
from shortstack.tables.judging import show_comparison, show_evaluation
from shortstack.tables.studying import frame, show_estimate, show_outcome, show_shrunk
from shortstack.tables.training import show_forecast, show_healing
from shortstack.tables.weighing import show_profile

__all__ = [
    "frame",
    "show_comparison",
    "show_estimate",
    "show_evaluation",
    "show_forecast",
    "show_healing",
    "show_outcome",
    "show_plan",
    "show_profile",
    "show_repair",
    "show_scores",
    "show_shrunk",
    "show_sweep",
    "show_verification",
]
