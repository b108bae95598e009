"""Every option of heal by its name: what the command line, recipes and study files know of healing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shortstack.healing.dataset import TrainingData
from shortstack.healing.methods import MethodOptions, made_method
from shortstack.healing.objective import Objective
from shortstack.healing.schedule import Schedule
from shortstack.healing.task import HealingTask
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.options import defaults_of, made_of

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint

COMPONENTS: tuple[Any, ...] = (TrainingData, MethodOptions, Objective, Schedule)  # dataclasses whose fields are options


def option_defaults() -> dict[str, Any]:
    """Every option of heal with its default."""
    return defaults_of(*COMPONENTS)


def task_of(
    values: Mapping[str, Any],
    *,
    teacher: Checkpoint | None = None,
    compute: Compute = AUTO,
    loggers: Sequence[str] = (),
) -> HealingTask:
    """The task of option values by name, with the default where none is named; others than options are passed over."""
    return HealingTask(
        made_of(TrainingData, values),
        made_method(values),
        made_of(Objective, values),
        made_of(Schedule, values),
        teacher=teacher,
        loggers=loggers,
        compute=compute,
    )
