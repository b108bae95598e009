"""The loss that training minimises; how long and how fast to train; and how pruning and healing take turns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from itertools import pairwise
from typing import Any

from shortstack.data import Sources, Text
from shortstack.data.text import MIX
from shortstack.errors import InputError
from shortstack.machine.numbers import is_share
from shortstack.machine.options import changed_options, check_installed, check_options, made_of, option, options_of
from shortstack.planning.layer_sets import check_pace, parse_drop
from shortstack.planning.selection import Selection

LOSSES = {"sft": "loss", "distill": "KL from the teacher"}  # what an objective lowers
DECAYS = (  # transformers' schedules that ask for nothing but the steps
    "linear",
    "cosine",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_8bit",
    "paged_adamw_8bit",
)


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}."


@dataclass(frozen=True)
class Objective:
    """The training objective.

    sft is next-token cross-entropy; distill is KL from a teacher, T^2 KL(p || q) at temperature T. top_k: so many of the
    teacher's likeliest tokens count by themselves, all others as one. next_token_weight: distill adds so many times the
    next-token loss of text and answers, but not of what a program or the teacher wrote.
    """

    loss: str = option("sft", help="sft: the next token; distill: the teacher's distribution.", choices=tuple(LOSSES))
    top_k: int = option(
        64, help="Distil the teacher's k most likely tokens; all others are pooled into one.", minimum=1
    )
    temperature: float = option(1.0, help="Temperature of teacher and student, for distill.", above=0)
    next_token_weight: float = option(
        0.0, help="For distill, the weight of the next-token loss beside it, on your text and answers alone.", minimum=0
    )

    def __post_init__(self) -> None:
        check_options(self)
        shaping = changed_options(self)
        if self.loss == "sft" and shaping:
            raise InputError(
                f"sft with {' and '.join(f'{name} {value}' for name, value in shaping.items())}",
                expected="distill, which top_k, temperature and next_token_weight belong to",
                fix="name distill, or leave them as they are by default",
                option="loss",
            )

    @property
    def teaches(self) -> bool:
        """Whether it needs a teacher."""
        return self.loss == "distill"


@dataclass(frozen=True)
class Course:
    """How far the learning rate has come after so many steps.

    steps: when it ends. replanned: (step, steps): until that step it was planned to end after so many. What was left of
    the rate's way at a change is then gone in the steps that are left, so the rate never jumps.

    >>> course = Course(100).changed(20, 60)  # at a fifth; four fifths in the next 40 steps
    >>> str(course), [course.share(step) for step in (10, 20, 40, 60)]
    ('20:100', [0.1, 0.2, 0.6, 1.0])
    """

    steps: int
    replanned: tuple[tuple[int, int], ...] = ()

    @property
    def first_steps(self) -> int:
        """The steps of the first plan."""
        return self.replanned[0][1] if self.replanned else self.steps

    def position(self, step: int) -> float:
        """Return the step of the first plan at which the rate would be as it is after this step."""
        begun, position, whole = 0, 0.0, self.first_steps
        for until, steps in self.replanned:
            if step <= until:
                return position + (step - begun) * (whole - position) / (steps - begun)
            position += (until - begun) * (whole - position) / (steps - begun)
            begun = until
        return position + (step - begun) * (whole - position) / (self.steps - begun)

    def share(self, step: int) -> float:
        """Return the share of its way that the rate has come."""
        return self.position(step) / self.first_steps

    def evaluated(self, step: int, every: float) -> bool:
        """Say whether the held-out loss is taken after that many steps: every so many, or every share of the way."""
        if is_share(every):
            before, now = (int(self.share(count) / every + 1e-9) for count in (step - 1, step))
            return now > before or step == self.steps
        return step % int(every) == 0 or step == self.steps

    def changed(self, step: int, steps: int) -> Course:
        """End after other steps; where steps is this step, end here."""
        return Course(steps, (*self.replanned, (step, self.steps)))

    def __str__(self) -> str:
        return ",".join(f"{step}:{steps}" for step, steps in self.replanned)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    The paper's are two epochs at 1e-5, batches of 64, 100 warm-up steps, linear decay (Lu et al., 4.1), for some 1,500
    steps; the defaults suit shorter runs. eval_steps: None is once an epoch, or with minutes once in a tenth of the time;
    a float is a share of the rate's way. early_stopping_patience: None never stops early.
    """

    num_train_epochs: float = option(2, help="Passes over the data.", above=0)
    max_steps: int | None = option(None, help="Optimizer steps; overrides the epochs.", minimum=1)
    minutes: float | None = option(
        None, help="Train for this long, loading and writing included, instead of a number of steps.", above=0
    )
    replanned: str | None = option(
        None, help="Repeat a run by the clock: the STEP:STEPS pairs that it printed at its end."
    )
    learning_rate: float | None = option(
        None,
        help="Peak learning rate. Default: 1e-4; of adapters it follows the model's width, 4.3e-4 at 4096.",
        above=0,
    )
    per_device_train_batch_size: int = option(16, help="Samples per forward pass.", minimum=1)
    gradient_accumulation_steps: int = option(
        1, help="Forward passes per optimizer step, over all processes.", minimum=1
    )
    warmup_steps: int = option(100, help="Warmup steps, capped at a tenth of all steps.", minimum=0)
    lr_scheduler_type: str = option("linear", help=f"Learning-rate schedule: {_either(DECAYS)}", choices=DECAYS)
    weight_decay: float = option(0.0, help="Weight decay of AdamW.", minimum=0)
    max_grad_norm: float = option(1.0, help="Gradient-norm clip; 0 disables.", minimum=0)
    optim: str = option("adamw_torch", help=f"{_either(OPTIMIZERS)} 8bit ones need bitsandbytes.", choices=OPTIMIZERS)
    gradient_checkpointing: bool = option(False, help="Recompute activations to save memory.")
    eval_steps: int | float | None = option(
        None,
        help="Steps between held-out evaluations, or a share such as 10%. Default: each epoch; 10% with minutes.",
        minimum=1,
        shares=True,
    )
    early_stopping_patience: int | None = option(
        None, help="Stop after this many held-out evaluations without improvement.", minimum=1
    )
    seed: int = option(0, help="Random seed.", minimum=0, maximum=2**32 - 1)

    def __post_init__(self) -> None:
        check_options(self)
        self._check_length()

    def _check_length(self) -> None:
        if self.minutes is not None and (self.max_steps or self.replanned):
            given = "max_steps" if self.max_steps else "replanned"
            raise InputError(
                f"{given} as well", expected=f"minutes or {given}, not both", fix="leave one out", option="minutes"
            )
        if self.replanned is not None and not self._changes_hold():
            raise InputError(
                f"{self.replanned!r} with max_steps {self.max_steps}",
                expected="comma-separated STEP:STEPS pairs in order, and max_steps at least as large",
                fix="copy it from the end of the run by the clock",
                option="replanned",
            )

    def _changes_hold(self) -> bool:
        if not re.fullmatch(r"\d+:\d+(,\d+:\d+)*", self.replanned or ""):
            return False
        changes = self._changes
        begun = [0, *(step for step, _ in changes)]
        in_order = all(before < step for before, step in pairwise(begun))
        planned = all(step <= steps for step, steps in changes)
        return in_order and planned and begun[-1] <= (self.max_steps or 0)

    @property
    def _changes(self) -> tuple[tuple[int, int], ...]:
        pairs = (change.split(":") for change in (self.replanned or "").split(",") if change)
        return tuple((int(step), int(steps)) for step, steps in pairs)

    def check(self) -> None:
        """Refuse an optimizer of a library that is not installed."""
        if self.optim.endswith("8bit"):
            check_installed("bitsandbytes", "quant", option="optim", why=f"which {self.optim} is part of")

    @property
    def batch_size(self) -> int:
        """Samples of an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def smaller(self) -> Schedule:
        """Take the same steps with at most half as many samples at once."""
        batch, most = self.batch_size, self.per_device_train_batch_size // 2
        size = max(size for size in range(1, most + 1) if batch % size == 0)
        return replace(self, per_device_train_batch_size=size, gradient_accumulation_steps=batch // size)

    def passes(self, processes: int) -> int:
        """Return how many forward passes of each process make one step."""
        passes, rest = divmod(self.gradient_accumulation_steps, processes)
        if rest:
            raise InputError(
                self.gradient_accumulation_steps,
                expected=f"a multiple of {processes} processes",
                fix=f"ask for {processes * max(1, passes)}",
                option="gradient_accumulation_steps",
            )
        return passes

    def epoch_steps(self, samples: int) -> int:
        """Count the optimizer steps of one epoch of that many samples."""
        return max(1, math.ceil(samples / self.batch_size))

    def steps(self, samples: int) -> int:
        """Count the optimizer steps of the whole run, where no clock ends it."""
        return self.max_steps or max(1, math.ceil(self.epoch_steps(samples) * self.num_train_epochs))

    def course(self, samples: int) -> Course:
        """Lay out the way of the learning rate, where no clock ends it."""
        return Course(self.steps(samples), self._changes)

    def warmup(self, steps: int) -> int:
        """Count the steps until the peak rate, of so many."""
        return min(self.warmup_steps, steps // 10)


@dataclass(frozen=True)
class IterativeSchedule:
    """Pruning and healing in turns (Lu et al., 4.3); the paper's schedule 1:1:8 is drop 8, step 1.

    drop: in all. metric, calibration_data, num_samples, seq_length: how layers are chosen each time. seed: of the choice;
    None: the schedule's.
    """

    drop: str = option(MISSING, help="With step: how much to remove in all, 25% or a count.")
    step: int = option(
        MISSING, help="Prune this many layers and heal, in turns, starting from the unpruned model.", minimum=1
    )
    metric: str = option("ppl", help="With step: how layers are chosen. Default: ppl.")
    calibration_data: Sources = option(MIX, help=f"With step: calibration text. Default: {MIX}.")
    num_samples: int = option(10, help="With step: calibration windows per text. Default: 10.", minimum=1)
    seq_length: int = option(128, help="With step: tokens per calibration window. Default: 128.", minimum=4)
    seed: int | None = None

    def __post_init__(self) -> None:
        check_options(self)
        made_of(Selection, vars(self))
        self.calibration  # noqa: B018  refuses what it cannot be

    @classmethod
    def of_options(cls, values: Mapping[str, Any]) -> IterativeSchedule | None:
        """Take option values by name, of which None are not given; return None where there are to be no turns."""
        given = {name: values[name] for name, _, _ in options_of(cls) if values.get(name) is not None}
        if not given:
            return None
        if not {"step", "drop"} <= given.keys():
            raise InputError(
                "only one of them",
                expected="step and drop together; metric, calibration_data, num_samples and seq_length need both",
                fix="give both, such as drop 25% and step 1, or prune first",
                option="step",
            )
        return cls(**given)

    @property
    def calibration(self) -> Text:
        return Text(self.calibration_data, self.num_samples, self.seq_length)

    def sizes(self, layers: int) -> list[int]:
        """Return how many layers go in each turn.

        >>> IterativeSchedule("8", 3).sizes(32)
        [3, 3, 2]
        """
        total = parse_drop(self.drop, layers)
        check_pace(self.step, total)
        return [min(self.step, total - gone) for gone in range(0, total, self.step)]
