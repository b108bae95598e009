"""The one training loop: transformers.Trainer over a module that returns its loss.

It keeps the weights with the lowest held-out loss and saves checkpoints, from which an interrupted run goes on. Steps with
non-finite gradients are skipped; on OOM the micro-batch is halved. With a deadline the learning rate and the held-out losses
follow the share of the time that is gone.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments, get_scheduler
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

from shortstack.checkpoint.safetensors import save_tensors
from shortstack.errors import InputError, TimeUpError, TrainingError
from shortstack.healing.budget import Deadline
from shortstack.healing.config import HealingConfig
from shortstack.healing.learner import IGNORED, Data, Ordered
from shortstack.healing.result import History, Losses
from shortstack.healing.resuming import BEST, STATE, last_checkpoint
from shortstack.machine.device import pick_device
from shortstack.machine.files import atomic_write
from shortstack.machine.numbers import is_share
from shortstack.machine.progress import Progress, silent

SAVE_SECONDS = 60.0  # between two checkpoints
SAVE_SHARE = 0.05  # of the time, at most, goes into saving
SKIPS = 10  # steps in a row without a finite gradient, after which training stops
ENDLESS = 10**9  # steps of a run that ends at its deadline
PARTS = 1000  # of the time, as learning rates and progress count it


def train(
    module: nn.Module,
    data: Data,
    config: HealingConfig,
    folder: Path,
    *,
    device: str = "cpu",
    bfloat16: bool = False,
    logs: Path | None = None,
    deadline: Deadline | None = None,
    progress: Progress = silent,
) -> History:
    """Train module's parameters that require a gradient; they end as those with the lowest held-out loss.

    module(**collate(samples), num_items_in_batch=n) returns {"loss": the sum over tokens that count, divided by n}, so
    every token of a batch counts the same however the batch is divided. Batches hold samples of alike length, in seeded
    order. config: with a learning rate. folder: of checkpoints; from the last one there the run goes on. bfloat16: autocast.
    logs: TensorBoard's folder.

    Raises:
        TrainingError: losses or gradients are NaN or infinite, or the deadline is over before the first step.
    """
    stage = "healing"
    while True:
        loop = _Loop(module, data, config, folder, device=device, bfloat16=bfloat16, logs=logs, deadline=deadline)
        loop.progress, loop.stage = progress, stage
        try:
            return loop.run()
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or not loop.can_halve:
                raise
        loop.save_before_halving()
        config = config.smaller()
        stage = f"healing, {config.per_device_train_batch_size} samples at once"


def training_device(name: str = "auto") -> str:
    """Pick the device as pick_device() does; in a distributed run this process's own GPU."""
    device = pick_device(name)
    number = device.partition(":")[2]
    if number.strip("0"):
        message = f"training takes the first GPU that it sees; set CUDA_VISIBLE_DEVICES={number} and give cuda"
        raise InputError(message, option="device")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and "WORLD_SIZE" in os.environ else device


class _Loop(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trainer with samples in their own order, a held-out loss per token, and the best weights kept."""

    control: Any
    progress: Progress
    stage: str

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        config: HealingConfig,
        folder: Path,
        *,
        device: str,
        bfloat16: bool,
        logs: Path | None,
        deadline: Deadline | None,
    ) -> None:
        self.data, self.config, self.folder, self.deadline = data, config, folder, deadline
        self.samples = Ordered(data.training, data.lengths, config.batch_size, seed=config.seed)
        self.total_steps = config.steps(len(data.training))
        self.checkpoint = last_checkpoint(folder)
        self.resumed_step = int(self.checkpoint.name.rpartition("-")[2]) if self.checkpoint else 0
        self.tokens, self.evaluating = 0, 0.0  # tokens trained on, and seconds of held-out losses, in this process
        self.stopped: str | None = None  # why training ends early
        self.broken = False  # by NaN or infinity
        self.in_optimizer = False
        self.save_due = time.monotonic() + SAVE_SECONDS
        module.accepts_loss_kwargs = True  # type: ignore[assignment]  # read by Trainer
        super().__init__(
            model=module,
            args=self._arguments(device, bfloat16),
            train_dataset=self.samples,
            data_collator=data.collate,
            callbacks=[_Rules(self)],
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and logs:
                callback.logging_dir = callback.logging_dir or str(logs)

    def _arguments(self, device: str, bfloat16: bool) -> TrainingArguments:
        config, steps = self.config, ENDLESS if self.deadline else self.total_steps
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            num_train_epochs=config.num_train_epochs,
            max_steps=ENDLESS if self.deadline else config.max_steps or -1,
            learning_rate=config.learning_rate,
            per_device_train_batch_size=config.per_device_train_batch_size,
            warmup_steps=config.warmup(steps),
            lr_scheduler_type=config.lr_scheduler_type,
            optim=config.optim,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            bf16=bfloat16,
            use_cpu=device == "cpu",
            eval_strategy="no",  # _Rules decides
            eval_on_start=self.checkpoint is None,
            save_strategy="no",  # _Rules decides
            save_total_limit=1,
            logging_steps=max(1, min(10, steps // 10)),
            prediction_loss_only=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.startswith("cuda"),
            report_to=list(config.report_to),
            disable_tqdm=True,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are several processes, never threads of one
        arguments.gradient_accumulation_steps = config.passes(arguments.world_size)
        return arguments

    def run(self) -> History:
        """Train to the end, and load the weights with the lowest held-out loss."""
        began = time.perf_counter()
        if self.checkpoint:
            self.state = TrainerState.load_from_json(str(self.checkpoint / STATE))
            if self.args.should_save:
                shutil.copyfile(self.checkpoint / BEST, self.folder / BEST)
        if not self._is_finished():
            self.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if self.broken and not self.best:
            message = f"step {self.state.global_step}: {self.stopped}; lower the learning rate, or check the data"
            raise TrainingError(message)
        self.accelerator.wait_for_everyone()
        weights: dict[str, Any] = {**load_file(self.folder / BEST)}
        set_model_state_dict(self.model_wrapped, weights, options=_whole_weights())
        return self._history(time.perf_counter() - began - self.evaluating)

    def _is_finished(self) -> bool:
        """Return True if a resumed run has no step left to take."""
        if self.checkpoint is None:
            return False
        if self.deadline:
            return not self.deadline.fits()
        return self.state.global_step >= self.total_steps or self.is_patience_over()

    def _history(self, seconds: float) -> History:
        log, config = self.state.log_history, self.config
        return History(
            _logged(log, "loss"),
            _logged(log, "eval_loss"),
            _logged(log, "eval_top1"),
            self.state.global_step,
            self.best,
            config.learning_rate or 0.0,
            config.per_device_train_batch_size,
            sum("skipped" in entry for entry in log),
            self.stopped,
            self.tokens * self.args.world_size / seconds,
        )

    @property
    def best(self) -> int:
        """The step with the lowest held-out loss."""
        return min(_logged(self.state.log_history, "eval_loss"), key=lambda entry: entry[1], default=(0, 0.0))[0]

    def agree(self, *values: float) -> list[float]:
        """Return the highest of each value among all processes, so that they decide alike."""
        if self.args.world_size == 1:
            return list(values)
        highest = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
        return [float(value) for value in highest]

    def stop(self, why: str, *, broken: bool = False) -> None:
        self.stopped, self.broken = why, broken
        self.control.should_training_stop = True

    def is_patience_over(self) -> bool:
        """Return True if too many held-out losses in a row were no lower than the best, and note that."""
        losses = [loss for _, loss in _logged(self.state.log_history, "eval_loss")]
        since = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        if over := since >= (self.config.early_stopping_patience or math.inf):
            self.stopped = f"{since} held-out losses in a row without a lower one"
        return over

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.samples)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Apply weight decay to matrices, not to norms and biases: Trainer goes by names, which here are numbers."""
        named = {*super().get_decay_parameter_names(model)}
        return [name for name, weight in model.named_parameters() if weight.dim() > 1 and name in named]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        self.tokens += inputs["labels"].numel()
        loss: Tensor = super().training_step(model, inputs, *args, **options)
        return loss

    def evaluate(self, *_args: Any, **_options: Any) -> dict[str, float]:
        """Measure the held-out loss, and keep the weights if it is the lowest."""
        began, deadline = time.perf_counter(), self.deadline
        used = deadline.clock.used if deadline else 0.0
        metrics = self._held_out_loss()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._keep_if_best(metrics["eval_loss"])
        self.evaluating += time.perf_counter() - began
        if deadline:
            now, seconds = self.agree(deadline.clock.used, deadline.clock.used - used)
            deadline.look(now, evaluation=seconds)
        return metrics

    @torch.no_grad()
    def _held_out_loss(self) -> dict[str, float]:
        """Average over tokens. Every process takes all samples: they are few, and so none counts twice."""
        self.model_wrapped.eval()
        data, size, count = self.data, self.args.per_device_train_batch_size, 0
        sums: Counter[str] = Counter()
        for start in range(0, len(data.held_out), size):
            batch = self._prepare_inputs(data.collate(list(data.held_out[start : start + size])))
            outputs = self.model_wrapped(**batch, num_items_in_batch=1)
            sums.update({f"eval_{name}": float(value) for name, value in outputs.items()})
            count += int((batch["labels"] != IGNORED).sum())
        return {name: value / count for name, value in sums.items()}

    def _keep_if_best(self, loss: float) -> None:
        if not math.isfinite(loss):
            if not self.state.global_step:
                raise TrainingError(f"the held-out loss before training is {loss}; check the weights and the data")
            self.stop(f"a held-out loss of {loss}", broken=True)
            return
        if self.best == self.state.global_step:
            weights: dict[str, Any] = get_model_state_dict(self.model_wrapped, options=_whole_weights())
            if self.args.should_save:
                with atomic_write(self.folder / BEST) as path:
                    save_tensors({name: weight.contiguous() for name, weight in weights.items()}, path)
        if self.is_patience_over():
            self.control.should_training_stop = True

    @property
    def can_halve(self) -> bool:
        """Whether a smaller micro-batch may help: not in the optimizer, nor where other processes wait."""
        return self.config.per_device_train_batch_size > 1 and self.args.world_size == 1 and not self.in_optimizer

    def save_before_halving(self) -> None:
        """Save the state after the last whole step."""
        if self.state.global_step > self.resumed_step:
            self._save_checkpoint(self.model_wrapped, trial=None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save the best weights, and then what Trainer saves, its state last."""
        began, place = time.monotonic(), self.folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(place, ignore_errors=True)  # unfinished, of a run that was killed
            place.mkdir()
            shutil.copyfile(self.folder / BEST, place / BEST)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        self.save_due = time.monotonic() + max(SAVE_SECONDS, (time.monotonic() - began) / SAVE_SHARE)


class _Rules(TrainerCallback):  # type: ignore[misc]
    """Decides when to evaluate, save and stop, skips steps without finite gradients, and sets the rate by the clock."""

    def __init__(self, loop: _Loop) -> None:
        self.loop, self.config, self.deadline = loop, loop.config, loop.deadline
        self.rate = _rate_by_time(loop.config) if self.deadline else None
        self.began, self.step_began = time.perf_counter(), 0.0
        self.skipped_in_a_row = 0
        self.passed = self._passed(loop.resumed_step)

    def _passed(self, step: int) -> int:
        """Count the held-out losses that are due until a step."""
        share = self.deadline.share if self.deadline else step / self.loop.total_steps
        every = self.config.eval_steps or (1 / 3 if self.deadline else self.config.epoch_steps(len(self.loop.samples)))
        return int(share / every + 1e-9) if is_share(every) else step // int(every)

    def on_step_begin(self, _args: Any, state: Any, *_rest: Any, optimizer: Any, **_options: Any) -> None:
        if not self.deadline or not self.rate:
            return
        if not state.global_step and not self.deadline.fits():
            raise TimeUpError("the time was up before the first step; allow more minutes")
        self.step_began = self.deadline.clock.used
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.rate(self.deadline.middle)

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **_rest: Any) -> None:
        loop = self.loop
        loop.in_optimizer = True
        if _is_gradient_finite(loop.model):
            self.skipped_in_a_row = 0
            return
        for weight in loop.model.parameters():
            weight.grad = None  # the optimizer leaves it as it is
        state.log_history.append({"step": state.global_step + 1, "skipped": True})
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= SKIPS:
            loop.stop(f"{SKIPS} steps in a row without a finite gradient", broken=True)

    def on_optimizer_step(self, *_args: Any, **_rest: Any) -> None:
        self.loop.in_optimizer = False

    def on_step_end(self, _args: Any, state: Any, control: Any, **_rest: Any) -> None:
        loop, deadline, step = self.loop, self.deadline, state.global_step
        used = deadline.clock.used if deadline else 0.0
        is_due = float(time.monotonic() >= loop.save_due)
        used, seconds, is_due = loop.agree(used, used - self.step_began, is_due)  # all processes save, or none
        if deadline:
            deadline.look(used, step=seconds)
            is_due *= deadline.left > SAVE_SECONDS
        passed = self._passed(step)
        evaluates, self.passed = passed > self.passed, passed
        if deadline and not deadline.fits(1 + evaluates):
            control.should_training_stop = control.should_log = True
        ends = control.should_training_stop or (not deadline and step == loop.total_steps)
        control.should_evaluate = evaluates or ends
        control.should_save = bool(is_due)
        self._show(step)

    def _show(self, step: int) -> None:
        loop, deadline = self.loop, self.deadline
        speed = f"{loop.tokens / (time.perf_counter() - self.began - loop.evaluating):,.0f} tokens/s"
        if deadline:
            left = timedelta(seconds=round(deadline.left))
            loop.progress(loop.stage, round(PARTS * deadline.share), PARTS, note=f"step {step}, {left} left, {speed}")
        else:
            loop.progress(loop.stage, step, loop.total_steps, note=speed)


def _logged(log: Sequence[dict[str, Any]], name: str) -> Losses:
    """Return (step, value) of the finite values that Trainer logged."""
    return tuple((entry["step"], entry[name]) for entry in log if math.isfinite(entry.get(name, math.nan)))


def _rate_by_time(config: HealingConfig) -> Callable[[float], float]:
    """Return the learning rate at a share of the time, as a share of its peak; a tenth of the time is warm-up."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    warmup = PARTS // 10 if config.warmup_steps else 0
    scheduler: Any = get_scheduler(config.lr_scheduler_type, optimizer, warmup, PARTS)
    return lambda share: float(scheduler.lr_lambdas[0](share * PARTS))


def _whole_weights() -> StateDictOptions:
    """Ask for unsharded weights in the memory of each process."""
    sharded = torch.distributed.is_available() and torch.distributed.is_initialized()
    return StateDictOptions(full_state_dict=sharded, cpu_offload=sharded, strict=False)


def _is_gradient_finite(module: nn.Module) -> bool:
    norm = torch.nn.utils.get_total_norm([param.grad for param in module.parameters() if param.grad is not None])
    return bool(torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
