"""Settings of healing: data, method, loss, and how long and how fast to train. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Annotated, Any

from pydantic import Field

from shortstack.data import Example, Sources, Text
from shortstack.data.text import SOURCES_HELP
from shortstack.errors import DataError, InputError
from shortstack.healing.layer_choice import Partial
from shortstack.healing.method import HealingMethod
from shortstack.machine.options import Amount, OneOf, check_installed, options

HELD_OUT_SHARE = 0.05
DATA = f"Text or instructions (text, alpaca, dolly, chat or prompt): {SOURCES_HELP}"
LOSSES = {"sft": "loss", "distill": "KL from the teacher"}  # the held-out loss of each
OF_DISTILL = {"top_k": 64, "temperature": 1.0, "next_token_weight": 0.0}
DECAYS = (  # transformers' schedules that need nothing but the steps
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


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}."


@options
class HealingConfig:
    """Settings of heal().

    data: the source of a Text. loss: sft is next-token cross-entropy; distill is T^2 KL(p || q) from a teacher
    at temperature T, of its top_k most likely tokens and all others as one. The paper trains two epochs at 1e-5 in batches
    of 64 with 100 warm-up steps (Lu et al., 4.1), some 1,500 steps; the defaults suit shorter runs.
    """

    data: Sources | None = Field(None, description=DATA)
    max_length: int = Field(256, ge=4, description="Longest sample, in tokens.")
    max_samples: Amount | None = Field(
        None, description="Use at most this many samples, including held-out ones, or a share such as 10%."
    )
    held_out: int | None = Field(None, ge=1, description="Samples held out from training. Default: 5 %.")
    method: HealingMethod = Partial()
    loss: Annotated[str, OneOf(LOSSES)] = Field(
        "sft", description="sft: the next token; distill: the teacher's distribution."
    )
    teacher: str | None = Field(None, description="Teacher of distill, if it is not the base model.")
    top_k: int = Field(64, ge=1, description="Distil the teacher's k most likely tokens; all others count as one.")
    temperature: float = Field(1.0, gt=0, description="Temperature of teacher and student, for distill.")
    next_token_weight: float = Field(
        0.0, ge=0, description="For distill: weight of the next-token loss of your text and answers, added to the KL."
    )
    num_train_epochs: float = Field(2, gt=0, description="Passes over the data.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; overrides the epochs.")
    minutes: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Time limit of the run, from loading to writing; overrides the epochs.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Peak learning rate. Default: 1e-4; for adapters by the model's width, 4.3e-4 at 4096.",
    )
    per_device_train_batch_size: int = Field(16, ge=1, description="Samples per forward pass.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Forward passes per optimizer step, over all processes."
    )
    warmup_steps: int = Field(100, ge=0, description="Warmup steps, at most a tenth of all steps or of the minutes.")
    lr_scheduler_type: Annotated[str, OneOf(DECAYS)] = Field(
        "linear", description=f"Learning-rate schedule: {_either(DECAYS)}"
    )
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, ge=0, allow_inf_nan=False, description="Gradient-norm clip; 0 disables.")
    optim: Annotated[str, OneOf(OPTIMIZERS)] = Field(
        "adamw_torch", description=f"{_either(OPTIMIZERS)} 8bit ones need bitsandbytes."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    eval_steps: Amount | None = Field(
        None,
        description="Steps between held-out evaluations, or a share such as 10%. "
        "Default: each epoch; each third of the time with minutes.",
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after this many held-out evaluations without improvement."
    )
    report_to: tuple[str, ...] = Field(
        (), description="Logger: tensorboard (its files go to OUTPUT.logs), trackio or wandb."
    )
    device: str = Field("auto", description="Device: auto is cuda if present, then mps, then cpu.")
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed.")

    def __post_init__(self) -> None:
        if self.minutes is not None and self.max_steps:
            raise InputError("give minutes or max_steps, not both", option="minutes")
        for name, default in OF_DISTILL.items():
            if self.loss == "sft" and getattr(self, name) != default:
                raise InputError("it belongs to the loss distill; choose that, or leave it out", option=name)

    @property
    def distills(self) -> bool:
        return self.loss == "distill"

    @property
    def reads_own_text(self) -> bool:
        """Whether the data holds text that the base model writes."""
        return bool(self.data) and self.text.own

    @property
    def needs_base(self) -> bool:
        """Whether the base model is needed, as the teacher or to write text."""
        return self.reads_own_text or (self.distills and self.teacher is None)

    @property
    def text(self) -> Text:
        """The data; an error if there is none."""
        if not self.data:
            raise InputError("give some, such as pydoc", option="data")
        return Text(self.data, self.max_samples, self.max_length)

    def check(self) -> None:
        """Refuse missing data, libraries and contradictory options before any work; the hub is not asked."""
        self.text.check("data")
        if self.teacher and not self.distills:
            raise InputError("only the loss distill has a teacher; leave it out", option="teacher")
        if self.next_token_weight and all(source.endless for source in self.text.sources):
            message = f"{self.text.name} has no text or answers; add some to the data, or leave it out"
            raise InputError(message, option="next_token_weight")
        self.method.check()
        if self.optim.endswith("8bit"):
            check_installed("bitsandbytes", "quant", option="optim", why=f"for {self.optim}")
        check_loggers(self.report_to)

    def count_held_out(self, examples: Sequence[Example], *, timed: bool = False) -> int:
        """Return how many of the first examples are held out, a tenth at most of a timed run; no conversation is divided."""
        samples = len(examples)
        wanted = self.held_out or max(1, round(samples * HELD_OUT_SHARE))
        wanted = min(wanted, max(1, samples // 10)) if timed else wanted
        whole = (place for place in range(wanted, samples) if not examples[place].follows)
        held_out = next(whole, max(wanted, samples))
        if samples <= held_out:
            message = f"{samples} samples, of which {held_out} would be held out; give more data or hold out fewer"
            raise DataError(message, option="held_out")
        return held_out

    def to_dict(self) -> dict[str, Any]:
        """Return all settings flat, as a recipe has them."""
        values = {declared.name: getattr(self, declared.name) for declared in fields(self)}
        method = self.method.to_dict()
        return {**values, "method": method.pop("name"), **method}

    @property
    def batch_size(self) -> int:
        """Samples of an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def smaller(self) -> HealingConfig:
        """Return settings with the same steps and at most half as many samples at once."""
        batch, most = self.batch_size, self.per_device_train_batch_size // 2
        size = max(size for size in range(1, most + 1) if batch % size == 0)
        return replace(self, per_device_train_batch_size=size, gradient_accumulation_steps=batch // size)

    def passes(self, processes: int) -> int:
        """Return the forward passes of each process in one step."""
        passes, rest = divmod(self.gradient_accumulation_steps, processes)
        if rest:
            message = f"{self.gradient_accumulation_steps} is no multiple of {processes} processes"
            raise InputError(message, option="gradient_accumulation_steps")
        return passes

    def epoch_steps(self, samples: int) -> int:
        """Return the optimizer steps of one epoch."""
        return max(1, math.ceil(samples / self.batch_size))

    def steps(self, samples: int) -> int:
        """Return the optimizer steps of a run without a clock."""
        return self.max_steps or max(1, math.ceil(self.epoch_steps(samples) * self.num_train_epochs))

    def warmup(self, steps: int) -> int:
        """Return the warm-up steps of so many."""
        return min(self.warmup_steps, steps // 10)


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger that is not installed."""
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    for name in names:
        if name not in available:
            message = f"{name} is not installed; pip install {name}, or use {', '.join(available) or 'none'}"
            raise InputError(message, option="report_to")
