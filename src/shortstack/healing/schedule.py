"""How long and how fast to train, and when the held-out loss is taken."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from shortstack.errors import InputError, parameter
from shortstack.machine.options import check_installed, check_options, option

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
class Schedule:
    """How long and how fast to train.

    The paper's are epochs 2, lr 1e-5, batch 64, 100 warm-up steps, linear decay (Lu et al., 4.1), for some 1,500 steps;
    the defaults suit shorter runs. eval_steps: None is once an epoch. patience: None never stops early.
    """

    epochs: float = option(2, help="Passes over the data.", above=0)
    max_steps: int | None = option(None, help="Optimizer steps, whatever the epochs say.", minimum=1)
    lr: float = option(1e-4, help="Peak learning rate.", above=0)
    batch_size: int = option(16, help="Samples per optimizer step.", minimum=1)
    micro_batch_size: int | None = option(
        None, help="Samples held at once. Default: the largest divisor of the batch up to 16.", minimum=1
    )
    warmup_steps: int = option(100, help="Steps until the peak rate; never more than a tenth of all.", minimum=0)
    decay: str = option("linear", help=f"How the rate falls: {_either(DECAYS)}", choices=DECAYS)
    weight_decay: float = option(0.0, help="Weight decay of AdamW.", minimum=0)
    max_grad_norm: float = option(1.0, help="Longer gradients are shortened to this; 0: none is.", minimum=0)
    optimizer: str = option("adamw_torch", help=f"{_either(OPTIMIZERS)} 8bit: by bitsandbytes.", choices=OPTIMIZERS)
    gradient_checkpointing: bool = option(False, help="Compute layers twice, and keep less for the backward pass.")
    eval_steps: int | None = option(None, help="Steps between held-out losses. Default: an epoch.", minimum=1)
    patience: int | None = option(None, help="Stop after so many held-out losses without a lower one.", minimum=1)
    seed: int = option(0, help="Seed of everything random.", minimum=0, maximum=2**32 - 1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.batch_size % self.micro:
            raise InputError(
                parameter("batch_size"),
                expected="a number of samples, and a micro-batch that divides it",
                found=f"{self.batch_size} in micro-batches of {self.micro}",
                fix="leave the micro-batch out",
            )

    def check(self) -> None:
        """Refuse an optimizer of a library that is not installed.

        Raises:
            InputError: it is so.
        """
        if self.optimizer.endswith("8bit"):
            where = parameter("optimizer", self.optimizer)
            check_installed("bitsandbytes", "quant", where=where, why="which it is part of")

    @property
    def micro(self) -> int:
        """Samples that pass the model at once; the gradients of batch_size / micro passes make one step."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return max(size for size in range(1, 17) if self.batch_size % size == 0)

    def epoch_steps(self, samples: int) -> int:
        """Optimizer steps of one epoch of that many samples."""
        return max(1, math.ceil(samples / self.batch_size))

    def steps(self, samples: int) -> int:
        """Optimizer steps of the whole run."""
        return self.max_steps or max(1, math.ceil(self.epoch_steps(samples) * self.epochs))

    def passes(self, samples: int) -> float:
        """How often that many samples are passed."""
        return self.max_steps / self.epoch_steps(samples) if self.max_steps else self.epochs

    def evaluated(self, step: int, samples: int) -> bool:
        """Whether the held-out loss is taken after that many steps."""
        every = self.eval_steps or self.epoch_steps(samples)
        return step % every == 0 or step == self.steps(samples)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
