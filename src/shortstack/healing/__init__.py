"""heal(): a pruned checkpoint learns again. A file per method; what they share is in healer.py, learner.py, frozen.py."""

from shortstack.healing.full import Full
from shortstack.healing.healer import Healing, heal
from shortstack.healing.lora import DoRA, Lora, QLora, RsLora
from shortstack.healing.partial import Partial
from shortstack.healing.turns import Turns, heal_in_turns
from shortstack.methods import METHODS
from shortstack.objective import Objective
from shortstack.schedule import Schedule

__all__ = [
    "METHODS",
    "DoRA",
    "Full",
    "Healing",
    "Lora",
    "Objective",
    "Partial",
    "QLora",
    "RsLora",
    "Schedule",
    "Turns",
    "heal",
    "heal_in_turns",
]
