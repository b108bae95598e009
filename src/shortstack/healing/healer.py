"""heal(): train part of a pruned checkpoint and write it as a new one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from accelerate import PartialState
from torch import nn

from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.checkpoint.record import provenance
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.checkpoint.writer import layout
from shortstack.data import Example, read_examples
from shortstack.decoder import Decoder
from shortstack.errors import CheckpointError, TrainingError, parameter
from shortstack.healing.batches import Data
from shortstack.healing.dataset import Lessons
from shortstack.healing.frozen import Freezer, Frozen, Live
from shortstack.healing.learner import Learner
from shortstack.healing.objective import Objective
from shortstack.healing.partial import Partial
from shortstack.healing.schedule import Schedule
from shortstack.healing.teacher_answers import Answers
from shortstack.healing.training import History, Place, train, training_device
from shortstack.healing.unfinished import Unfinished
from shortstack.machine.device import fast_bfloat16
from shortstack.machine.memory import peak_rss
from shortstack.machine.progress import Progress, silent


class Method(Protocol):
    """A way to heal: which part of a model trains, and what of it is written."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]: ...
    def first(self, checkpoint: Checkpoint, /) -> int: ...
    def prepare(self, checkpoint: Checkpoint, decoder: Decoder, /) -> Mapping[str, nn.Module]: ...
    def tensors(self, checkpoint: Checkpoint, learner: Learner, /) -> dict[str, StoredTensor]: ...
    def added_bytes(self, checkpoint: Checkpoint, /) -> int: ...
    def config(self, checkpoint: Checkpoint, /) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Trained:
    """The tensors that changed, under their stored names and in their stored dtype, and the config fields that did."""

    tensors: Mapping[str, StoredTensor]
    parameters: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Healing:
    """What healing did; the healed checkpoint is at `output`. objective: what the losses are, sft or distill."""

    output: Path
    method: str
    objective: str
    trainable_parameters: int
    history: History
    seconds: float
    peak_rss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        losses, held_out = self.history.losses, self.history.held_out
        return {
            "output": str(self.output),
            "method": self.method,
            "objective": self.objective,
            "trainable_parameters": self.trainable_parameters,
            "loss": {
                "first": losses[0][1] if losses else None,
                "last": losses[-1][1] if losses else None,
                "held_out": min(loss for _, loss in held_out),
                "held_out_before": held_out[0][1],
            },
            "steps": self.history.steps,
            "best_step": self.history.best,
            "skipped_steps": self.history.skipped,
            "stopped": self.history.stopped,
            "tokens_per_s": self.history.tokens_per_s,
            "losses": [list(entry) for entry in losses],
            "held_out_losses": [list(entry) for entry in held_out],
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def heal(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    data: str,
    method: Method | None = None,
    objective: Objective | None = None,
    schedule: Schedule | None = None,
    teacher: Checkpoint | None = None,
    max_length: int = 256,
    max_samples: int | None = None,
    held_out: int | None = None,
    self_generate: bool = False,
    cache: bool = True,
    resume: bool | None = None,
    loggers: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
) -> Healing:
    """Train `method`'s part of the checkpoint on `data` (text or instructions) and write the result to the new `out`.

    Some samples are held out (5 % unless a number is given) and never trained on; the weights with the lowest loss on them
    are written. What is frozen, and what a teacher says, is computed once and kept in the cache (cache=False: anew for
    every batch). self_generate: the teacher's own answers are learnt instead of those in the data. The state of the
    training is kept beside `out`, and goes when it ends; resume says what to do with one that is there.

    Raises:
        DataError: the data cannot be read.
        CheckpointError: the weights are quantised, so that training them would change their format.
        InputError: options that exclude each other, or a state that belongs to another run.
        OutputError: `out` exists, is nested in the input, does not fit the disk, or has an unfinished run beside it.
        TrainingError: losses or gradients were no numbers; nothing is written.
    """
    started = time.perf_counter()
    task = Task.of(
        checkpoint,
        data=data,
        method=method,
        objective=objective,
        schedule=schedule,
        teacher=teacher,
        max_length=max_length,
        max_samples=max_samples,
        held_out=held_out,
        self_generate=self_generate,
        loggers=loggers,
        device=device,
        progress=progress,
    )
    task.check()
    nbytes = checkpoint.weight_bytes + task.method.added_bytes(checkpoint)
    writer = CheckpointWriter(out, source=checkpoint.directory, nbytes=nbytes)
    examples = task.examples()
    asked = task.asked(examples)
    unfinished = Unfinished(writer.out)
    with task.processes.main_process_first():
        folder = unfinished.open(asked, resume=resume if task.processes.is_main_process else True)
    try:
        trained, history = task.run(examples, folder, cache=cache)
    except TrainingError:  # the state leads nowhere
        unfinished.remove()
        raise
    seconds = round(time.perf_counter() - started, 3)
    healing = {**asked, "history": asdict(history)}
    if task.processes.is_main_process:
        _write(writer, checkpoint, trained, {**provenance(checkpoint, "heal", seconds), "healing": healing}, progress)
        unfinished.remove()
    task.processes.wait_for_everyone()
    return Healing(writer.out, task.method.name, task.objective.loss, trained.parameters, history, seconds, peak_rss())


@dataclass(frozen=True)
class Task:
    """What is to train, on what, how, and where."""

    checkpoint: Checkpoint
    lessons: Lessons
    method: Method
    schedule: Schedule
    objective: Objective
    teacher: Checkpoint | None = None
    device: str = "cpu"
    loggers: Sequence[str] = ()
    progress: Progress = silent

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, device: str = "auto", **options: Any) -> Task:
        """The task of heal()'s options; what is left out, or None, is what heal() takes by itself."""
        given = {name: value for name, value in options.items() if value is not None}
        lessons = Lessons(**{each.name: given.pop(each.name) for each in fields(Lessons) if each.name in given})
        usual = {"method": Partial(), "schedule": Schedule(), "objective": Objective()}
        return cls(checkpoint, lessons, device=training_device(device), **{**usual, **given})

    @cached_property
    def processes(self) -> PartialState:
        """Those that `accelerate launch` started, or this one."""
        return PartialState(cpu=self.device == "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """What frozen layers compute in."""
        return torch.bfloat16 if fast_bfloat16(self.device) else torch.float32

    @cached_property
    def freezer(self) -> Freezer:
        teacher = self.teacher if self.objective.teaches else None
        return Freezer(self.checkpoint, self.dtype, self.device, self.objective, teacher, self.progress)

    def check(self) -> None:
        """Say what cannot be before anything is read."""
        self.lessons.check()
        self.schedule.check()
        _check_trainable(self.checkpoint)
        teacher = self.teacher.source if self.teacher else None
        self.objective.check_teacher(teacher, answers=self.lessons.self_generate)
        self.method.first(self.checkpoint)

    def examples(self) -> list[Example]:
        """The samples, the held-out ones first."""
        lessons, seed = self.lessons, self.schedule.seed
        found = read_examples(lessons.data, self.checkpoint.tokenizer(), max_length=lessons.max_length, seed=seed)
        found = found[: lessons.max_samples]
        if self.teacher and lessons.self_generate:
            with self.processes.main_process_first():
                answers = Answers(self.teacher, lessons.max_length, seed, self.device, self.dtype)
                found = answers.to(found, progress=self.progress)
        return found

    def asked(self, examples: Sequence[Example]) -> dict[str, Any]:
        """What the outcome depends on."""
        told = repr([(example.ids, example.learn) for example in examples])
        return {
            "weights": self.checkpoint.weights_sha256,
            "method": self.method.to_dict(),
            "objective": asdict(self.objective),
            "teacher": self.teacher and self.teacher.weights_sha256,
            "schedule": self.schedule.to_dict(),
            "data": {**asdict(self.lessons), "sha256": hashlib.sha256(told.encode()).hexdigest()},
            "samples": len(examples),
        }

    def run(self, examples: Sequence[Example], folder: Path, *, cache: bool) -> tuple[Trained, History]:
        """Compute what is frozen, or find it on disk; then train."""
        held_out = self.lessons.held_out_of(len(examples))
        frozen, decoder = self._frozen(examples, cache=cache)
        learner = Learner(decoder, frozen.first, self.method.prepare(self.checkpoint, decoder), self.objective)
        if self.schedule.gradient_checkpointing:
            decoder.model.gradient_checkpointing_enable({"use_reentrant": False})
        training = range(held_out, len(examples))
        data = Data(training, range(held_out), frozen.lengths[held_out:], frozen.collate)
        logs = folder.with_suffix(".logs")
        place = Place(self.device, self.dtype == torch.bfloat16, self.loggers, logs, self.progress)
        history = train(learner, data, self.schedule, folder, place=place)
        tensors = self.method.tensors(self.checkpoint, learner)
        return Trained(tensors, learner.trainable_parameters, self.method.config(self.checkpoint)), history

    def _frozen(self, examples: Sequence[Example], *, cache: bool) -> tuple[Frozen | Live, Decoder]:
        first = self.method.first(self.checkpoint)
        if not cache:
            decoder = self._loaded(self.checkpoint)
            if first:
                decoder.check_bare(f"train all layers: {parameter('last', self.checkpoint.anatomy.layers)}")
            teacher = self._loaded(self.freezer.teacher) if self.freezer.teacher else None
            return Live(self.freezer, examples, first, decoder, teacher), decoder
        with self.processes.main_process_first():
            frozen = self.freezer.fill(self.freezer.planned(examples, first))
        return frozen, self.decoder(first)

    def decoder(self, first: int) -> Decoder:
        """The model that trains, without weights for the layers before `first`."""
        if first:
            return Decoder.tail(self.checkpoint, first, dtype=self.dtype, device=self.device)
        return self._loaded(self.checkpoint)

    def _loaded(self, checkpoint: Checkpoint) -> Decoder:
        return Decoder.load(checkpoint, dtype=self.dtype, device=self.device)


def _write(
    writer: CheckpointWriter,
    checkpoint: Checkpoint,
    trained: Trained,
    record: Mapping[str, Any],
    progress: Progress,
) -> None:
    """The checkpoint with what was trained in place of what it was before, in the same shards."""
    tensors = [trained.tensors.get(name, tensor) for name, tensor in checkpoint.tensors.items()]
    tensors += [tensor for name, tensor in trained.tensors.items() if name not in checkpoint.tensors]
    origin = {name: tensor.file.name for name, tensor in checkpoint.tensors.items()}
    layer_map = checkpoint.record.get("layer_map") or _identity(checkpoint)
    with writer:
        writer.json("config.json", {**checkpoint.config, **trained.config})
        for path in checkpoint.side_files():
            writer.copy(path)
        writer.tensors(layout(tensors, origin), progress=progress)
        writer.commit({**record, "plan": None, "layer_map": layer_map})


def _identity(checkpoint: Checkpoint) -> dict[str, int]:
    return {str(layer): layer for layer in range(checkpoint.anatomy.layers)}


def _check_trainable(checkpoint: Checkpoint) -> None:
    if checkpoint.config.get("quantization_config"):
        raise CheckpointError(
            checkpoint.directory,
            expected="16- or 32-bit weights to train",
            found="a quantised checkpoint",
            fix="heal the unquantised model, then quantise",
        )
