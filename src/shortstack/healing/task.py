"""A healing task: data, method, objective, schedule and teacher, and all of them as options. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from shortstack.data import Rows, source_of
from shortstack.errors import InputError
from shortstack.healing.dataset import TrainingData
from shortstack.healing.layer_choice import Partial
from shortstack.healing.method import HealingMethod
from shortstack.healing.methods import MethodOptions, made_method
from shortstack.healing.schedule import Objective, Schedule
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.options import defaults_of, made_of

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint, Model


@dataclass(frozen=True)
class HealingTask:
    """The data to learn from, the method, the objective and the schedule.

    data: also its name alone, or rows in memory, where all else of TrainingData is as usual. teacher: the unpruned model,
    for an objective or data that needs one; its name, or loaded. loggers: integrations of transformers, such as tensorboard.
    compute: only its device counts.
    """

    data: TrainingData
    method: HealingMethod = field(default_factory=Partial)
    objective: Objective = field(default_factory=Objective)
    schedule: Schedule = field(default_factory=Schedule)
    teacher: Model | None = None
    loggers: Sequence[str] = ()
    compute: Compute = AUTO

    def __post_init__(self) -> None:
        given = cast("TrainingData | Rows", self.data)
        if not isinstance(given, TrainingData):
            object.__setattr__(self, "data", TrainingData(source_of(given)))  # rows may be read only once

    @classmethod
    def of(cls, task: HealingTask | Rows) -> HealingTask:
        """Take a task however it is given: also its data alone, where all else is as usual."""
        return task if isinstance(task, HealingTask) else cls(TrainingData(source_of(task)))

    @cached_property
    def unpruned(self) -> Checkpoint | None:
        """The teacher, opened."""
        from shortstack.checkpoint import Checkpoint

        return None if self.teacher is None else Checkpoint.of(self.teacher)

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is learnt from, or writes what is learnt."""
        return self.objective.teaches or self.data.own

    def check(self, teacher: str | None = None) -> None:
        """Refuse what cannot work whatever the model that heals. teacher: its name, where it is yet to be opened."""
        self.data.check()
        self._check_teacher(self.unpruned.source if self.unpruned else teacher)
        self.method.check()
        self.schedule.check()
        check_loggers(self.loggers)

    def _check_teacher(self, teacher: str | None) -> None:
        users = "the loss distill and the data self"
        if self.needs_teacher and teacher is None:
            expected = f"the unpruned model, from which {users} learn"
            raise InputError("none", expected=expected, fix="name that model", option="teacher")
        if teacher is not None and not self.needs_teacher:
            expected = f"no teacher: only {users} use one"
            raise InputError(teacher, expected=expected, fix="leave it out", option="teacher")


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger that transformers does not find installed."""
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    known = get_available_reporting_integrations()
    for name in names:
        if name not in known:
            expected = f"loggers that are installed: {', '.join(known) or 'none'}"
            raise InputError(name, expected=expected, fix=f"pip install {name}, or name another", option="report_to")


COMPONENTS: tuple[Any, ...] = (TrainingData, MethodOptions, Objective, Schedule)  # dataclasses whose fields are options


def option_defaults() -> dict[str, Any]:
    """Return every option of heal with its default."""
    return defaults_of(*COMPONENTS)


def task_of(
    values: Mapping[str, Any],
    *,
    teacher: Checkpoint | None = None,
    compute: Compute = AUTO,
    loggers: Sequence[str] = (),
) -> HealingTask:
    """Make the task of option values by name, with the default where none is named; pass others over."""
    return HealingTask(
        made_of(TrainingData, values),
        made_method(values),
        made_of(Objective, values),
        made_of(Schedule, values),
        teacher=teacher,
        loggers=loggers,
        compute=compute,
    )
