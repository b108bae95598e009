"""A healing task: data, method, objective, schedule and teacher, and all of them as options. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from shortstack.data import Example, Rows, Sources, Text
from shortstack.data.text import SOURCES_HELP, read_source
from shortstack.errors import DataError, InputError
from shortstack.healing.config import HealingConfig
from shortstack.healing.layer_choice import Partial
from shortstack.healing.method import HealingMethod
from shortstack.healing.methods import HealOptions, config_of
from shortstack.healing.schedule import Objective, Schedule
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.options import check_options, defaults_of, option, options_of

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint, Model

HELD_OUT_SHARE = 0.05
DATA = f"Text or instructions (text, alpaca, dolly, chat or prompt): {SOURCES_HELP}"


@dataclass(frozen=True)
class TrainingData:
    """The training data of a healing.

    data: the source of a Text. max_samples counts the held-out ones, too; a float is a share.
    """

    data: Sources | None = option(None, help=DATA)
    max_length: int = option(256, help="Longest sample, in tokens.", minimum=4)
    max_samples: int | float | None = option(
        None,
        help="Use at most this many samples, including held-out ones, or a share such as 10%.",
        minimum=2,
        shares=True,
    )
    held_out: int | None = option(None, help="Samples held out from training. Default: 5 %.", minimum=1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.data is not None:
            try:
                object.__setattr__(self, "data", read_source(self.data))
            except DataError as error:
                raise error.about("data") from None

    @property
    def own(self) -> bool:
        """Whether a teacher writes a part of it."""
        return bool(self.data) and self.text.own

    @property
    def text(self) -> Text:
        """The data as a Text; refused where none was named."""
        if not self.data:
            fix = "name some, such as pydoc"
            raise InputError("none", expected="text or instructions to learn from", fix=fix, option="data")
        return Text(self.data, self.max_samples, self.max_length)

    def check(self) -> None:
        """Refuse data that is not named or not there, before minutes of work; the hub is not asked."""
        self.text.check("data")

    def held_out_among(self, examples: Sequence[Example]) -> int:
        """Count the held-out examples, from the first on: a few more where the line would cut a conversation."""
        samples = len(examples)
        line = self.held_out or max(1, round(samples * HELD_OUT_SHARE))
        whole = (place for place in range(line, samples) if not examples[place].follows)
        held_out = next(whole, max(line, samples))
        if samples <= held_out:
            raise DataError(
                f"{samples} sample{'s' * (samples != 1)}, of which {held_out} would be held out",
                expected="at least one sample to train on besides the held-out ones",
                fix="give more data, raise max_samples, or hold out fewer",
                option="held_out",
                where=self.text.name,
            )
        return held_out


@dataclass(frozen=True)
class HealingTask:
    """The data to learn from, the method, the objective and the schedule.

    data: also its name alone, or rows in memory, where all else of TrainingData is as usual. teacher: the unpruned model,
    for an objective or data that needs one; its name, or loaded. loggers: integrations of transformers, such as tensorboard.
    compute: only its device counts.
    """

    data: TrainingData
    method: HealingMethod = field(default_factory=lambda: Partial())
    objective: Objective = field(default_factory=Objective)
    schedule: Schedule = field(default_factory=Schedule)
    teacher: Model | None = None
    loggers: Sequence[str] = ()
    compute: Compute = AUTO

    def __post_init__(self) -> None:
        given = cast("TrainingData | Rows", self.data)
        if not isinstance(given, TrainingData):
            object.__setattr__(self, "data", TrainingData(cast("Iterable[Any]", given)))  # rows may be read only once

    @classmethod
    def of(cls, task: HealingTask | Rows) -> HealingTask:
        """Take a task however it is given: also its data alone, where all else is as usual."""
        return task if isinstance(task, HealingTask) else cls(cast("TrainingData", task))

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
        self._check_text()
        self.method.check()
        self.schedule.check()
        check_loggers(self.loggers)

    def _check_teacher(self, teacher: str | None) -> None:
        if self.needs_teacher and teacher is None:
            user = "the loss distill" if self.objective.teaches else "the data self"
            expected = f"the unpruned model, which {user} needs"
            raise InputError("none", expected=expected, fix="name it", option="teacher")
        if teacher is not None and not self.needs_teacher:
            expected = "no teacher: only the loss distill and the data self use one"
            raise InputError(teacher, expected=expected, fix="leave it out", option="teacher")

    def _check_text(self) -> None:
        """Refuse a weight of the next-token loss where no text counts in it."""
        weight = self.objective.next_token_weight
        if weight and all(source.endless for source in self.data.text.sources):
            expected = f"text or answers beside {self.data.text.name}, which the next-token loss leaves out"
            raise InputError(
                weight, expected=expected, fix="add some to the data, or leave it out", option="next_token_weight"
            )


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


def option_defaults() -> dict[str, Any]:
    """Return every option of heal with its default."""
    return defaults_of(HealOptions)


def task_of(
    values: Mapping[str, Any],
    *,
    teacher: Checkpoint | None = None,
    compute: Compute = AUTO,
    loggers: Sequence[str] = (),
) -> HealingTask:
    """Make the task of option values by name, with the default where none is named."""
    return task_of_config(config_of(values), base=teacher, compute=compute, loggers=loggers)


def task_of_config(
    config: HealingConfig, *, base: Model | None = None, compute: Compute = AUTO, loggers: Sequence[str] = ()
) -> HealingTask:
    parts: Any = [
        part(**{name: getattr(config, name) for name, _, _ in options_of(part) if hasattr(config, name)})
        for part in (TrainingData, Objective, Schedule)
    ]
    data, objective, schedule = parts
    return HealingTask(data, config.method, objective, schedule, base, [*loggers, *config.report_to], compute)
