"""How long and how fast to train, and when the held-out loss is taken."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from shortstack.errors import InputError, parameter

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
LEAST = {"warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0, "eval_steps": 1, "patience": 1}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    The paper's are epochs 2, lr 1e-5, batch 64, 100 warm-up steps, linear decay (Lu et al., 4.1), for some 1,500 steps;
    the defaults suit shorter runs. micro_batch_size: samples held at once; None is the largest divisor of batch_size up
    to 16. decay, optimizer: one of DECAYS, of OPTIMIZERS. max_grad_norm: 0 is no limit. eval_steps: steps between held-out
    losses; None is once an epoch. patience: held-out losses without a lower one after which to stop; None is never.
    """

    epochs: float = 2
    lr: float = 1e-4
    batch_size: int = 16
    micro_batch_size: int | None = None
    warmup_steps: int = 100
    decay: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    eval_steps: int | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, usual in (("epochs", "2"), ("lr", "1e-4")):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(
                    parameter(name),
                    expected="a number above 0",
                    found=str(value),
                    fix=f"write {parameter(name, usual)}",
                )

        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise InputError(
                    parameter(name), expected=f"a number, at least {least}", found=str(value), fix="leave it out"
                )
        micro = self.micro
        if self.batch_size < 1 or not 1 <= micro <= self.batch_size or self.batch_size % micro:
            raise InputError(
                parameter("batch_size"),
                expected="a number of samples, and a micro-batch that divides it",
                found=f"{self.batch_size} in micro-batches of {micro}",
                fix="leave the micro-batch out",
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(
                parameter("seed"), expected="0 to 2**32 - 1", found=str(self.seed), fix="name another seed"
            )
        for name, known in (("decay", DECAYS), ("optimizer", OPTIMIZERS)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    parameter(name), expected=f"one of {', '.join(known)}", found=repr(value), fix="leave it out"
                )

    def check(self) -> None:
        """Refuse an optimizer of a library that is not installed.

        Raises:
            InputError: it is so.
        """
        if self.optimizer.endswith("8bit") and find_spec("bitsandbytes") is None:
            raise InputError(
                parameter("optimizer", self.optimizer),
                expected="bitsandbytes, which it is part of",
                found="none installed",
                fix="pip install 'shortstack[quant]'",
            )

    @property
    def micro(self) -> int:
        """Samples that pass the model at once; the gradients of batch_size / micro passes make one step."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return max((size for size in range(1, 17) if self.batch_size % size == 0), default=1)

    def epoch_steps(self, samples: int) -> int:
        """Optimizer steps of one epoch of that many samples."""
        return max(1, math.ceil(samples / self.batch_size))

    def steps(self, samples: int) -> int:
        """Optimizer steps of the whole run."""
        return max(1, math.ceil(self.epoch_steps(samples) * self.epochs))

    def evaluated(self, step: int, samples: int) -> bool:
        """Whether the held-out loss is taken after that many steps."""
        every = self.eval_steps or self.epoch_steps(samples)
        return step % every == 0 or step == self.steps(samples)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
