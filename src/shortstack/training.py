"""The one training loop: transformers.Trainer over any module that returns its loss."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from shortstack.errors import InputError, TrainingError
from shortstack.progress import Progress, silent

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    The paper's are epochs 2, lr 1e-5, batch 64, 100 warm-up steps, linear decay (Lu et al., 4.1), for some 1,500 steps;
    the defaults suit shorter runs. micro_batch_size: samples held at once; None is the largest divisor of batch_size up
    to 16.
    """

    epochs: float = 2
    lr: float = 1e-4
    batch_size: int = 16
    micro_batch_size: int | None = None
    warmup_steps: int = 100
    decay: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(
                    f"--{name}", expected="a number above 0", found=str(value), fix="write --epochs 2, --lr 1e-4"
                )

        micro = self.micro
        if self.batch_size < 1 or not 1 <= micro <= self.batch_size or self.batch_size % micro:
            raise InputError(
                "--batch-size",
                expected="a number of samples, and a micro-batch that divides it",
                found=f"{self.batch_size} in micro-batches of {micro}",
                fix="leave the micro-batch out",
            )
        if not 0 <= self.seed < 2**32:
            raise InputError("--seed", expected="0 to 2**32 - 1", found=str(self.seed), fix="name another seed")

    @property
    def micro(self) -> int:
        """Samples that pass the model at once; the gradients of batch_size / micro passes make one step."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return max((size for size in range(1, 17) if self.batch_size % size == 0), default=1)

    def steps(self, samples: int) -> int:
        """Optimizer steps over that many samples."""
        return max(1, math.ceil(samples / self.batch_size * self.epochs))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class History:
    """What training saw.

    losses: (step, mean loss since the last entry); held_out: (epoch, loss), epoch 0 before training.
    """

    losses: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[float, float], ...] = ()
    steps: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def train(
    module: nn.Module,
    samples: Sequence[Any],
    held_out: Sequence[Any],
    collate: Callable[[list[Any]], Batch],
    schedule: Schedule,
    *,
    device: str = "cpu",
    bfloat16: bool = False,
    progress: Progress = silent,
) -> History:
    """Train module's parameters that require a gradient; module(**collate(samples)) returns {"loss": scalar}.

    Samples are drawn without replacement in seeded order. bfloat16: autocast; the weights stay as they are.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    with tempfile.TemporaryDirectory() as folder:
        watch = _Watch(progress)
        trainer = Trainer(
            model=module,
            args=_arguments(folder, schedule, len(samples), device, bfloat16),
            train_dataset=_Listed(samples),
            eval_dataset=_Listed(held_out),
            data_collator=collate,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.can_return_loss = True
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
    found = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    after = [
        (entry["epoch"], entry["eval_loss"])
        for entry in trainer.state.log_history
        if "eval_loss" in entry and entry["step"]
    ]
    return History(tuple(found), ((0.0, before), *after), trainer.state.global_step, schedule.to_dict())


def _arguments(folder: str, schedule: Schedule, samples: int, device: str, bfloat16: bool) -> TrainingArguments:
    steps = schedule.steps(samples)
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=schedule.epochs,
        learning_rate=schedule.lr,
        per_device_train_batch_size=schedule.micro,
        per_device_eval_batch_size=schedule.micro,
        gradient_accumulation_steps=schedule.batch_size // schedule.micro,
        warmup_steps=min(schedule.warmup_steps, steps // 10),
        lr_scheduler_type=schedule.decay,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        seed=schedule.seed,
        bf16=bfloat16,
        use_cpu=device == "cpu",
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=max(1, min(10, steps // 10)),
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.startswith("cuda"),
        report_to=[],
        disable_tqdm=True,
    )


class _Listed(torch.utils.data.Dataset[Any]):
    """A sequence as the dataset type Trainer asks for."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Reports steps, and stops at a loss that is no number."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress("healing", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise TrainingError(
                f"step {state.global_step}",
                expected="a finite loss",
                found=str(loss),
                fix="lower --lr, or check the data and the weights",
            )
