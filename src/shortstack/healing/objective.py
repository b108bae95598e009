"""The loss that healing minimises: next-token cross-entropy, or the distance from a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from shortstack.errors import InputError
from shortstack.machine.options import changed_options, check_options, option

LOSSES = ("sft", "distill")


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    sft is next-token cross-entropy; distill is KL from a teacher, T^2 KL(p || q) at temperature T. top_k: so many of the
    teacher's likeliest tokens count by themselves, all others as one. hidden_weight: of the squared distance between what
    leaves the last layer and what leaves the teacher's, over the teacher's squared norm.
    """

    loss: str = option("sft", help="sft: the next token; distill: the teacher's distribution.", choices=LOSSES)
    top_k: int = option(
        64, help="Compare the teacher's k likeliest tokens one by one, and all others as one.", minimum=1
    )
    temperature: float = option(1.0, help="Temperature of teacher and student, for distill.", above=0)
    hidden_weight: float = option(0.0, help="Weight of the loss on the last hidden states, for distill.", minimum=0)

    def __post_init__(self) -> None:
        check_options(self)
        shaping = changed_options(self)
        if self.loss == "sft" and shaping:
            raise InputError(
                f"sft beside {' and '.join(f'{name} {value}' for name, value in shaping.items())}",
                expected="distill, which top_k, temperature and hidden_weight shape",
                fix="name distill, or leave them out",
                option="loss",
            )

    @property
    def teaches(self) -> bool:
        """Whether it needs a teacher."""
        return self.loss == "distill"
