"""The one training loop: transformers.Trainer over any module that returns its loss.

It keeps its state in a folder, so that a killed run goes on and ends in the same weights; it leaves out steps whose gradient
is no number, halves what it holds at once when memory runs out, and ends with the weights of the lowest held-out loss. By a
clock it takes as many steps as there is time for.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

from shortstack.checkpoint.safetensors import save_tensors
from shortstack.errors import InputError, TrainingError
from shortstack.healing.learner import IGNORED, Data, Ordered
from shortstack.healing.pacing import CLOCK, TIME_OVER, Pacing, kept_pacing
from shortstack.healing.schedule import Course, Schedule
from shortstack.healing.unfinished import Interruption, TrainingLeft, log_of, mark_whole, newest_state, step_of
from shortstack.machine.clock import Clock
from shortstack.machine.device import pick_device
from shortstack.machine.files import atomic_write, save_json
from shortstack.machine.progress import Progress, silent

KEEP_SECONDS = 60.0  # between two times that the state is written
SHARE = 0.05  # of the time, at most, goes into writing it
SKIPS = 10  # steps in a row without a finite gradient, after which training stops
BEST = "best-{}.safetensors"  # of a step
ENDLESS = 10**9  # steps, where the clock says when to end


@dataclass(frozen=True)
class History:
    """The course of a training.

    losses: (step, mean loss since the last entry). held_out: (step, loss per token), step 0 before training. greedy: (step,
    share of the teacher's likeliest tokens that are the model's, too), where it learns from a teacher. best: the step whose
    weights the module has in the end. skipped: steps left out, since non-finite gradient. stopped: why training ended early,
    if it did. tokens_per_s: of training, without held-out losses.
    """

    losses: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...] = ()
    greedy: tuple[tuple[int, float], ...] = ()
    steps: int = 0
    best: int = 0
    skipped: int = 0
    stopped: str | None = None
    tokens_per_s: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """Where training runs, and what it reports to.

    bfloat16: autocast. loggers: transformers' integrations, as tensorboard. logs: the folder that tensorboard writes to,
    unless TENSORBOARD_LOGGING_DIR names another; the state's folder goes when training ends. clock: training ends with it,
    whatever steps and epochs the schedule says.
    """

    device: str = "cpu"
    bfloat16: bool = False
    loggers: Sequence[str] = ()
    logs: Path | None = None
    progress: Progress = silent
    clock: Clock | None = None


def train(module: nn.Module, data: Data, schedule: Schedule, folder: Path, *, environment: Environment) -> History:
    """Train module's parameters that require a gradient; they end as those of the lowest held-out loss.

    module(**collate(samples), num_items_in_batch=n) returns {"loss": the sum over tokens that count, divided by n}, so
    every token of a batch counts the same however the batch is divided. Batches hold samples of alike length, in seeded
    order. schedule: with a learning rate. folder: keeps the state; where it holds one, the run goes on from there.
    """
    stage = "healing"
    while True:
        run = _Run(module, data, schedule, folder, environment, stage=stage)
        if run.completes():
            return run.result()
        run.keep()
        schedule = schedule.smaller()
        stage = f"healing, {schedule.per_device_train_batch_size} samples at once"


def training_device(name: str = "auto") -> str:
    """Pick the device as pick_device() does; where several processes train together, take this one's own GPU."""
    device = pick_device(name)
    number = device.partition(":")[2]
    if number.strip("0"):
        raise InputError(
            device,
            expected="the first GPU that this process sees, to train on",
            fix=f"set CUDA_VISIBLE_DEVICES={number}, and name cuda",
            option="device",
        )
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and "WORLD_SIZE" in os.environ else device


class _Run(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """One run of Trainer from a start or a state: says when to evaluate, save and stop, and which steps to leave out."""

    def __init__(
        self, module: nn.Module, data: Data, schedule: Schedule, folder: Path, environment: Environment, *, stage: str
    ) -> None:
        self.module, self.data, self.schedule, self.folder = module, data, schedule, folder
        self.environment = environment
        self.stage = stage
        self.samples = Ordered(data, schedule.batch_size, seed=schedule.seed)
        self.state = newest_state(folder)
        self.pacing = self._pacing(environment.clock)
        self.kept = step_of(self.state) if self.state else None  # the step of the last state that is whole
        self.first_step = self.kept or 0  # steps that were taken before this run
        self.random = _random_state()  # when the last step ended
        self.stepping = False
        self.skipped_in_a_row = 0
        self.stopped: str | None = None
        self.leaving = False  # once its state is kept
        self.broken = False  # whether it stopped because of a number that is none
        self.evaluating, self.began = 0.0, time.perf_counter()
        self.save_due = time.monotonic() + KEEP_SECONDS
        module.accepts_loss_kwargs = True  # type: ignore[assignment]  # read by Trainer
        self.loop = _Loop(self, self._arguments())
        self.interruption = Interruption(self.keep, alone=self.loop.args.world_size == 1)

    def completes(self) -> bool:
        """Train; False where memory ran out, and a smaller micro-batch may help."""
        try:
            with self.interruption.deferring(), suppress(TrainingLeft):
                self.loop.train(resume_from_checkpoint=str(self.state) if self.state else None)
        except RuntimeError as error:
            # A smaller micro-batch does not help inside an optimizer step, nor where other processes wait.
            can_halve = self.schedule.per_device_train_batch_size > 1 and self.interruption.alone and not self.stepping
            if not should_reduce_batch_size(error) or not can_halve:
                raise
            return False
        return True

    def _pacing(self, clock: Clock | None) -> Pacing | None:
        if clock is None:
            return None
        step_tokens = sum(self.data.lengths) / self.schedule.epoch_steps(len(self.data.training))
        return Pacing(clock, step_tokens, self.highest).going_on(kept_pacing(self.state))

    @property
    def course(self) -> Course:
        """The way of the learning rate: the clock's, once there is a plan, or the schedule's."""
        planned = self.pacing and self.pacing.course
        return planned or self.schedule.course(len(self.data.training))

    @property
    def by_plans(self) -> bool:
        """Whether a clock makes the course, or made it."""
        return self.pacing is not None or self.schedule.replanned is not None

    @property
    def followed(self) -> Schedule:
        """The schedule that does the same without a clock."""
        if self.pacing is None:
            return self.schedule
        steps, replanned = self.course.steps, str(self.course) or None
        return replace(self.schedule, minutes=None, max_steps=steps, replanned=replanned, eval_steps=self.every)

    @property
    def every(self) -> float:
        """Steps between held-out losses, or a share of the course."""
        share = self.pacing and self.pacing.eval_share
        return self.schedule.eval_steps or share or self.schedule.epoch_steps(len(self.data.training))

    def rate(self, step: int) -> float:
        """Return the learning rate after so many steps, as a share of its peak."""
        return rate_of(self.schedule, self.course.first_steps)(self.course.position(step))

    def highest(self, value: float) -> float:
        """Return the highest among the processes, so that all take the same steps."""
        if self.loop.args.world_size == 1:
            return value
        highest = torch.tensor(value, dtype=torch.float64, device=self.loop.args.device)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
        return float(highest)

    def keep(self) -> None:
        """Write the state after the last whole step."""
        torch.set_rng_state(self.random[0])
        torch.cuda.set_rng_state_all(self.random[1])
        self.loop._save_checkpoint(self.loop.model_wrapped, trial=None)

    def held_out(self) -> list[tuple[int, float]]:
        """Return (step, held-out loss) where that is a number; before the run begins, those of the state it goes on from."""
        return _held_out(self.loop.state.log_history or log_of(self.state))

    def keep_if_best(self, loss: float) -> None:
        """Keep the weights if the held-out loss is the lowest; stop where it is no number, or patience is at its end."""
        if not math.isfinite(loss):
            self.break_off(f"a held-out loss of {loss}")
        elif not self._since_best:  # this one is the last of them
            weights: dict[str, Any] = get_model_state_dict(self.loop.model_wrapped, options=_whole_weights())
            if self.loop.args.should_save:
                self._write_best({name: weight.contiguous() for name, weight in weights.items()})
        self.stopped = self.stopped or self._impatient()
        self.loop.control.should_training_stop |= self.stopped is not None

    @property
    def _since_best(self) -> int:
        """Count the held-out losses after the lowest one."""
        losses = [loss for _, loss in self.held_out()]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def _impatient(self) -> str | None:
        patience = self.schedule.early_stopping_patience
        if not patience or (since := self._since_best) < patience:
            return None
        return f"{since} held-out losses in a row without a lower one"

    def _write_best(self, weights: dict[str, Tensor]) -> None:
        """Write the best weights; those that the last state knows as the best stay, as a killed run goes on from there."""
        of_state = _lowest(_held_out(log_of(newest_state(self.folder))))
        needed = {self.folder / BEST.format(step) for step in (of_state, self.loop.state.global_step)}
        with atomic_write(self.folder / BEST.format(self.loop.state.global_step)) as path:
            save_tensors(weights, path)
        for path in {*self.folder.glob(BEST.format("*"))} - needed:
            path.unlink()

    def break_off(self, why: str) -> None:
        self.stopped, self.broken = why, True

    def result(self) -> History:
        """Give the module the best weights, and say how the training went."""
        state, held_out = self.loop.state, self.held_out()
        best = _lowest(held_out)
        if self.broken and not best:
            raise TrainingError(
                self.stopped,
                expected="finite losses and gradients",
                fix="lower the learning rate, or check the data and the weights",
                where=f"step {state.global_step}",
            )
        self.loop.accelerator.wait_for_everyone()
        weights: dict[str, Any] = {**load_file(self.folder / BEST.format(best))}
        set_model_state_dict(self.loop.model_wrapped, weights, options=_whole_weights())
        seconds = time.perf_counter() - self.began - self.evaluating
        return History(
            self._logged("loss"),
            tuple(held_out),
            self._logged("eval_greedy"),
            state.global_step,
            best,
            sum("left_out" in entry for entry in state.log_history),
            self.stopped,
            self._passed(state.global_step) / seconds,
            asdict(self.followed),
        )

    def _passed(self, step: int) -> int:
        """Count the tokens that all processes have passed through the model until a step, in this run."""
        world: int = self.loop.args.world_size
        return self.samples.tokens((step - self.first_step) * self.schedule.batch_size // world) * world

    def _logged(self, name: str) -> tuple[tuple[int, float], ...]:
        return tuple((entry["step"], entry[name]) for entry in self.loop.state.log_history if name in entry)

    def on_step_begin(self, _args: Any, state: Any, *_rest: Any, **_options: Any) -> None:
        self.random = _random_state()
        if self.state and state.global_step == self.first_step >= self.course.steps:  # left in its last held-out loss
            self.stopped = self.pacing.over if self.pacing else None
            raise TrainingLeft
        self.stopped = self.stopped or self._impatient()
        if self.stopped:  # in the held-out loss that this run began with, or before it
            raise TrainingLeft
        if state.global_step == self.first_step and self.by_plans:
            if self.pacing and not self.pacing.begin(self.loop.held_out_tokens):
                self.stopped = TIME_OVER
                raise TrainingLeft
            for group in self.loop.optimizer.param_groups:  # Trainer's own schedule set the first step's
                group["lr"] = group["initial_lr"] * self.rate(state.global_step)

    def on_pre_optimizer_step(self, _args: Any, state: Any, control: Any, **_rest: Any) -> None:
        self.stepping = True
        if _finite_gradient(self.module):
            self.skipped_in_a_row = 0
            return
        for weight in self.module.parameters():
            weight.grad = None  # what has no gradient is left as it is
        state.log_history.append({"step": state.global_step + 1, "left_out": True})
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= SKIPS:
            self.break_off(f"{SKIPS} steps in a row without a finite gradient")
            control.should_training_stop = True

    def on_optimizer_step(self, *_args: Any, **_rest: Any) -> None:
        self.stepping = False

    def on_step_end(self, _args: Any, state: Any, control: Any, **_rest: Any) -> None:
        step = state.global_step
        self.random = _random_state()
        passed = self._passed(step)
        speed = f"{passed / (time.perf_counter() - self.began - self.evaluating):,.0f} tokens/s"
        if self.pacing:
            control.should_training_stop |= not self.pacing.stepped(step, passed)
            self.stopped = self.stopped or self.pacing.over
            speed = f"{timedelta(seconds=round(self.pacing.clock.left))} left, {speed}"
        self.environment.progress(self.stage, step, self.course.steps, note=speed)
        self.interruption.signal = int(self.highest(self.interruption.signal))
        control.should_evaluate = self.course.evaluated(step, self.every) or self.stopped is not None
        due = self.highest(time.monotonic() >= self.save_due)  # by one clock: all of them write a state, or none
        self.leaving = bool(self.interruption.signal)  # as all have agreed
        control.should_save = self.leaving or bool(due)

    def on_save(self, *_args: Any, **_rest: Any) -> None:
        if self.leaving:
            raise TrainingLeft

    def _arguments(self) -> TrainingArguments:
        schedule, count = self.schedule, len(self.data.training)
        steps = ENDLESS if self.pacing else schedule.steps(count)
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            num_train_epochs=schedule.num_train_epochs,
            max_steps=steps if self.pacing else schedule.max_steps or -1,
            learning_rate=schedule.learning_rate,
            per_device_train_batch_size=schedule.per_device_train_batch_size,
            warmup_steps=schedule.warmup(steps),
            lr_scheduler_type=schedule.lr_scheduler_type,
            optim=schedule.optim,
            weight_decay=schedule.weight_decay,
            max_grad_norm=schedule.max_grad_norm,
            seed=schedule.seed,
            bf16=self.environment.bfloat16,
            use_cpu=self.environment.device == "cpu",
            eval_strategy="no",  # on_step_end says when, so that a state is never kept between a step and its held-out loss
            eval_on_start=self._must_evaluate(),
            save_strategy="no",
            logging_steps=max(1, min(10, steps // 10)),
            prediction_loss_only=True,
            remove_unused_columns=False,
            dataloader_pin_memory=self.environment.device.startswith("cuda"),
            report_to=list(self.environment.loggers),
            disable_tqdm=True,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are several processes, never threads of one
        arguments.gradient_accumulation_steps = schedule.passes(arguments.world_size)
        return arguments

    def _must_evaluate(self) -> bool:
        """Say whether the held-out loss at the start, or after the step where the state was kept, is yet to be taken."""
        if self.state is None:
            return True
        step = self.first_step
        known = any(entry["step"] == step and "eval_loss" in entry for entry in log_of(self.state))
        return not known and (not step or self.course.evaluated(step, self.every))


class _Loop(Trainer):  # type: ignore[misc]
    """Trainer with samples in their own order, a held-out loss per token, and states that are whole or not there."""

    control: Any
    held_out_tokens = 0  # of the last held-out loss, padding included

    def __init__(self, run: _Run, arguments: TrainingArguments) -> None:
        self.run = run
        super().__init__(
            model=run.module, args=arguments, train_dataset=run.samples, data_collator=run.data.collate, callbacks=[run]
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and run.environment.logs:
                callback.logging_dir = callback.logging_dir or str(run.environment.logs)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.run.samples)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Let matrices decay, and no norm or bias: Trainer goes by names alone, which here are numbers."""
        named = {*super().get_decay_parameter_names(model)}
        return [name for name, weight in model.named_parameters() if weight.dim() > 1 and name in named]

    def create_scheduler(self, *args: Any, **options: Any) -> Any:
        scheduler: Any = super().create_scheduler(*args, **options)
        if self.run.by_plans:
            scheduler.lr_lambdas = [lambda step: self.run.rate(step) for _ in scheduler.lr_lambdas]
        return scheduler

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        with self.run.interruption.passing():
            loss: Tensor = super().training_step(*args, **options)
        return loss

    def evaluate(self, *_args: Any, **_options: Any) -> dict[str, float]:
        started = time.perf_counter()
        with self.run.pacing.evaluating() if self.run.pacing else nullcontext():
            metrics = self._held_out()
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            self.run.keep_if_best(metrics["eval_loss"])
        self.run.evaluating += time.perf_counter() - started
        return metrics

    @torch.no_grad()
    def _held_out(self) -> dict[str, float]:
        """Average over tokens. Every process takes all of them: they are few, and so no sample counts twice."""
        self.model_wrapped.eval()
        data, size, count, self.held_out_tokens = self.run.data, self.args.per_device_train_batch_size, 0, 0
        sums: Counter[str] = Counter()
        for start in range(0, len(data.held_out), size):
            batch = self._prepare_inputs(data.collate(list(data.held_out[start : start + size])))
            with self.run.interruption.passing():
                outputs = self.model_wrapped(**batch, num_items_in_batch=1)
            sums.update({f"eval_{name}": float(value) for name, value in outputs.items()})
            count += int((batch["labels"] != IGNORED).sum())
            self.held_out_tokens += batch["labels"].numel()
        return {name: value / count for name, value in sums.items()}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the state and mark it as whole; only then do earlier ones go. A whole one is never written again."""
        step = self.state.global_step
        if self.run.kept == step:
            return
        started = time.monotonic()
        state = self.run.folder / f"checkpoint-{step}"
        if self.args.should_save:
            shutil.rmtree(state, ignore_errors=True)  # of a run that was killed while it wrote it
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (state / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
            if self.run.pacing:
                save_json(state / CLOCK, self.run.pacing.kept())
            mark_whole(state)
        self.run.kept = step
        taken = time.monotonic() - started
        self.run.save_due = time.monotonic() + max(KEEP_SECONDS, taken / SHARE)


def _held_out(log: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return (step, held-out loss) of what Trainer logged, where that is a number."""
    return [(entry["step"], entry["eval_loss"]) for entry in log if math.isfinite(entry.get("eval_loss", math.nan))]


def _lowest(losses: Sequence[tuple[int, float]]) -> int:
    """Return the step of the lowest held-out loss, and 0 without any."""
    return min(losses, key=lambda entry: entry[1], default=(0, math.nan))[0]


@functools.lru_cache(maxsize=8)
def rate_of(schedule: Schedule, steps: int) -> Callable[[float], float]:
    """Return transformers' own learning rate at a step of so many, as a share of its peak."""
    assert schedule.learning_rate is not None  # noqa: S101  train() is given one
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=schedule.learning_rate)
    scheduler: Any = get_scheduler(schedule.lr_scheduler_type, optimizer, schedule.warmup(steps), steps)
    rate: Callable[[float], float] = scheduler.lr_lambdas[0]
    return rate


def _whole_weights() -> StateDictOptions:
    """Ask for the weights of a module as one process has them, however they are sharded."""
    sharded = torch.distributed.is_available() and torch.distributed.is_initialized()
    return StateDictOptions(full_state_dict=sharded, cpu_offload=sharded, strict=False)


def _finite_gradient(module: nn.Module) -> bool:
    norm = torch.nn.utils.get_total_norm([param.grad for param in module.parameters() if param.grad is not None])
    return bool(torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all()
