"""What healing minimises, and whether that needs a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from shortstack.errors import InputError, parameter

LOSSES = ("sft", "distill")


@dataclass(frozen=True)
class Objective:
    """What is minimised: sft is next-token cross-entropy; distill is KL from a teacher, T^2 KL(p || q) at temperature T.

    top: so many of the teacher's likeliest tokens count by themselves, all others as one. hidden_weight: of the squared
    distance between what leaves the last layer and what leaves the teacher's, over the teacher's squared norm.
    """

    loss: str = "sft"
    top: int = 64
    temperature: float = 1.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, value, fits, expected in (
            (parameter("loss"), self.loss, self.loss in LOSSES, " or ".join(LOSSES)),
            (parameter("top_k"), self.top, self.top >= 1, "at least 1"),
            (parameter("temperature"), self.temperature, 0 < self.temperature < float("inf"), "a number above 0"),
            (parameter("hidden_weight"), self.hidden_weight, 0 <= self.hidden_weight < float("inf"), "0 or more"),
        ):
            if not fits:
                raise InputError(name, expected=expected, found=repr(value), fix="`shortstack heal --help` explains it")
        shaping = [
            name for name in ("top", "temperature", "hidden_weight") if getattr(self, name) != vars(Objective)[name]
        ]
        if self.loss == "sft" and shaping:
            raise InputError(
                parameter("loss", "sft"),
                expected=f"no {parameter('top_k')}, {parameter('temperature')} or "
                f"{parameter('hidden_weight')}: they shape distillation",
                found=", ".join(f"{name} {getattr(self, name)}" for name in shaping),
                fix=f"add {parameter('loss', 'distill')}",
            )

    @property
    def teaches(self) -> bool:
        """Whether it needs a teacher."""
        return self.loss == "distill"

    def check_teacher(self, teacher: str | None, *, answers: bool) -> None:
        """Refuse a teacher that nobody asks, and a question without one. answers: whether the teacher writes the targets.

        Raises:
            InputError: as said.
        """
        if (self.teaches or answers) != (teacher is not None):
            raise InputError(
                parameter("teacher"),
                expected=f"a teacher for {parameter('loss', 'distill')} or "
                f"{parameter('self_generate', True)}, and only there",
                found=teacher or "none",
                fix="leave it out" if teacher else f"add {parameter('teacher', 'MODEL')}, the unpruned model",
            )
