"""heal(): train part of a pruned model and write it as a new one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from shortstack.architecture.anatomy import check_positions
from shortstack.checkpoint import Checkpoint, CheckpointWriter, Model
from shortstack.checkpoint.record import layer_map, provenance
from shortstack.checkpoint.safetensors import StoredTensor, spill
from shortstack.checkpoint.weights import check_unquantised
from shortstack.checkpoint.writer import layout
from shortstack.data import Example, Rows, Text, read_examples
from shortstack.data.text import public_names
from shortstack.data.tokens import same_tokens
from shortstack.decoder import Decoder, with_own_text
from shortstack.errors import InputError, ShortstackError
from shortstack.healing.budget import Budget, Deadline, io_seconds
from shortstack.healing.config import HealingConfig
from shortstack.healing.frozen import Freezer
from shortstack.healing.learner import Data, Learner
from shortstack.healing.memory import check_memory, compute_dtype, output_bytes
from shortstack.healing.result import Healing, History
from shortstack.healing.resuming import Unfinished, last_checkpoint
from shortstack.healing.samples import fitting_text, full_text
from shortstack.healing.training import train, training_device
from shortstack.machine.cache import cache_limit, library_versions
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute
from shortstack.machine.files import scratch_beside
from shortstack.machine.memory import peak_rss
from shortstack.machine.progress import Progress, silent
from shortstack.profiling.speed import forward_speed

OWN_TOKENS = 16 * 288  # that the base model writes in its first batch


def heal(
    model: Model,
    out: str | Path,
    config: HealingConfig | Rows,
    *,
    base: Model | None = None,
    clock: Clock | None = None,
    speed: float | None = None,
    progress: Progress = silent,
) -> Healing:
    """Train the part of a model that the method names, and write the result to the new `out`.

    config: settings, or the data alone. Some samples are held out and never trained on; the weights with the lowest loss on
    them are written. base: the base model, teacher of the loss distill and writer of the data `self`. clock: ends the run,
    by default config.minutes from now. speed: forward tokens per second of the base model; measured by default. After an
    interruption the same call goes on from a checkpoint saved beside `out`, in the time that is left.

    Raises:
        InputError: contradictory options, too few minutes, or too little memory.
        DataError: the data cannot be read.
        CheckpointError: the weights are quantised.
        OutputError: `out` exists, is nested in the input, or does not fit the disk.
        TrainingError: losses or gradients were not finite, or there was no time for a step; nothing is written.
    """
    started = time.perf_counter()
    config = config if isinstance(config, HealingConfig) else HealingConfig(data=config)  # type: ignore[arg-type]
    run = HealingRun(Checkpoint.of(model), config, None if base is None else Checkpoint.of(base), progress)
    run.check()
    clock = clock or (Clock(60 * config.minutes) if config.minutes else None)
    writer = run.writer(out)
    with writer.held() if run.is_main else nullcontext():
        unfinished = Unfinished(writer.out)
        with run.processes.main_process_first():
            unfinished.open({**run.settings(), "timed": clock is not None})
        with unfinished.removed_on_error():
            limit = run.limit(clock, unfinished, speed) if clock else None
            run = replace(run, progress=unfinished.timing(limit.clock, progress)) if limit else run
            text = run.text(limit, unfinished)
            examples = run.examples(text)
            learner, history = run.train(examples, unfinished, limit)
            with scratch_beside(writer.out) if run.is_main else nullcontext() as scratch:
                tensors = run.changed(learner, scratch)
                seconds = round(time.perf_counter() - started, 3)
                if scratch:
                    run.write(writer, tensors, run.record(text, examples, history, seconds))
        unfinished.remove()
    run.processes.wait_for_everyone()
    layers, count = config.method.trained_layers(run.checkpoint), learner.trainable_parameters
    parts = config.method.name, config.loss, count, history, len(examples), seconds, peak_rss(), layers
    return Healing(writer.out, *parts)


def least_seconds(model: Model, config: HealingConfig, *, speed: float, base: Model | None = None) -> float:
    """Estimate the seconds that heal() needs at least with a time limit; with less it refuses to begin."""
    run = HealingRun(Checkpoint.of(model), config, None if base is None else Checkpoint.of(base))
    return run.budget(speed).least_seconds


@dataclass(frozen=True)
class Limit:
    """A time limit: the clock, the cost of the run, and the clock's seconds when training began, if it has."""

    clock: Clock
    budget: Budget
    began: float | None = None

    def deadline(self, step_tokens: float) -> Deadline:
        """Return the deadline of training, before which a last held-out loss ends; writing comes after it."""
        clock = self.clock.reserving(io_seconds(self.budget.nbytes))
        return Deadline(clock, step=self.budget.step_seconds(step_tokens), began=self.began)


@dataclass(frozen=True)
class HealingRun:
    """One run of heal(). base: None if it is not known."""

    checkpoint: Checkpoint
    config: HealingConfig
    base: Checkpoint | None = None
    progress: Progress = silent

    @cached_property
    def device(self) -> str:
        return training_device(self.config.device)

    @cached_property
    def processes(self) -> PartialState:
        """The processes of `accelerate launch`, or this one."""
        return PartialState(cpu=self.device == "cpu")

    @property
    def is_main(self) -> bool:
        return bool(self.processes.is_main_process)

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.device)

    @cached_property
    def first(self) -> int:
        """The first layer that is not frozen."""
        return self.config.method.first(self.checkpoint)

    @cached_property
    def teacher(self) -> Checkpoint | None:
        if not self.config.distills or self.config.teacher is None:
            return self.base if self.config.distills else None
        return Checkpoint.open(self.config.teacher, trust_remote_code=self.checkpoint.trust_remote_code)

    @cached_property
    def trained_config(self) -> HealingConfig:
        """The settings with a learning rate."""
        rate = self.config.learning_rate or self.config.method.learning_rate(self.checkpoint)
        return replace(self.config, learning_rate=rate)

    def check(self) -> None:
        """Refuse before any work what cannot succeed."""
        config = self.config
        config.check()
        if config.needs_base and self.base is None:
            user = "the data self" if config.reads_own_text else "the loss distill"
            raise InputError(f"{user} needs the base model", option="base")
        cache_limit()
        _ = self.checkpoint.record  # goes into the result's; its errors are raised now
        check_unquantised(self.checkpoint, "to train", "heal")
        for name, other in (("teacher", self.teacher), ("base", self.base if config.reads_own_text else None)):
            if other and not self._shares_tokens(other):
                raise InputError(f"{other.source} has other tokens; give the base model", option=name)
        if self.processes.num_processes == 1:
            check_memory(self.checkpoint, config)

    def _shares_tokens(self, other: Checkpoint) -> bool:
        same = other.vocabulary == self.checkpoint.vocabulary
        return same and (not other.has_tokenizer or same_tokens(self.checkpoint.tokenizer(), other.tokenizer()))

    def settings(self) -> dict[str, Any]:
        """Return all that the result depends on, known before the data is read."""
        others = {"base": self.base if self.config.reads_own_text else None, "teacher": self.teacher}
        return {
            "model": self.checkpoint.identity,
            **{name: model and model.identity for name, model in others.items()},
            "config": self.trained_config.to_dict(),
            "data": self.config.text.digest,
            "dtype": str(self.dtype).removeprefix("torch."),
            "libraries": library_versions(),
        }

    def budget(self, speed: float) -> Budget:
        """Return the cost of the run. speed: forward tokens per second of the deeper of both models."""
        config, nbytes = self.config, output_bytes(self.checkpoint, self.config)
        passes = self.first / self.checkpoint.anatomy.layers + (self.teacher is not None)
        written = OWN_TOKENS if config.reads_own_text else 0
        return Budget(speed, passes, config.batch_size, config.max_length, written, nbytes)

    def limit(self, clock: Clock, unfinished: Unfinished, speed: float | None) -> Limit:
        """Return the time limit, less the time that an interrupted run has used; refuse one without time for a step."""
        config = self.config

        def decide() -> tuple[float, float]:
            layers = max(model.anatomy.layers for model in (self.checkpoint, self.teacher) if model)
            forward = speed or forward_speed(self.checkpoint, dtype=self.dtype, device=self.device, layers=layers)
            return forward, clock.used

        forward, used = self._decided(decide)
        before = unfinished.notes.get("seconds", 0.0) if config.minutes else 0.0
        budget, left = self.budget(forward), clock.seconds - used - before
        resumed = last_checkpoint(unfinished.folder) is not None
        if not resumed and left < budget.least_seconds:
            if before:
                unfinished.begin_anew("the unfinished run has too little time left")
            before = 0.0
            budget.check(clock.seconds, used)
        clock = Clock(clock.seconds, used=clock.used + before, now=clock.now)
        return Limit(clock, budget, unfinished.notes.get("began") if resumed else None)

    def _decided(self, decide: Callable[[], Any]) -> Any:
        """Return what the first process decides, or raise its error, in all processes."""
        made: Any = None
        if self.is_main:
            try:
                made = decide()
            except ShortstackError as error:
                made = error
        (made,) = broadcast_object_list([made])
        if isinstance(made, ShortstackError):
            raise made
        return made

    def text(self, limit: Limit | None, unfinished: Unfinished) -> Text:
        """Return the data, of which the base model has written its part, in the size that fits the time."""
        config, tokenizer = self.config, self.checkpoint.tokenizer()
        if last_checkpoint(unfinished.folder):
            return Text(**unfinished.notes["text"])

        def decide() -> Text:
            if limit is None:
                return full_text(config.text, tokenizer, config.seed, self._write)
            return fitting_text(config.text, tokenizer, config.seed, limit.budget, limit.clock, self._write)

        text: Text = self._decided(decide)
        unfinished.note(text=asdict(text))
        return text

    def _write(self, text: Text, windows: int, deadline: Clock | None) -> Text:
        """Have the base model write its part of the data."""
        assert self.base  # noqa: S101  checked before
        compute = Compute(device=self.config.device, seed=self.config.seed)
        return with_own_text(
            text, self.base, windows=windows, deadline=deadline, compute=compute, progress=self.progress
        )

    def examples(self, text: Text) -> list[Example]:
        """Read the samples, the held-out ones first."""
        with self.processes.main_process_first():
            examples = read_examples(text, self.checkpoint.tokenizer(), self.config.seed)
        check_positions(self.checkpoint, max((len(example.ids) for example in examples), default=0), "max_length")
        return examples

    def train(
        self, examples: Sequence[Example], unfinished: Unfinished, limit: Limit | None
    ) -> tuple[Learner, History]:
        """Compute what is frozen, or find it in the cache; then train."""
        config, held_out = self.trained_config, self.config.count_held_out(examples, timed=limit is not None)
        freezer = Freezer(self.checkpoint, self.dtype, self.device, config, self.teacher, self.progress)
        with self.processes.main_process_first():
            frozen = freezer.fill(freezer.planned(examples, self.first))
        learner = self.learner()
        data = Data(range(held_out, len(examples)), range(held_out), frozen.lengths[held_out:], frozen.collate)
        step_tokens = config.batch_size * sum(data.lengths) / len(data.lengths)
        deadline = limit.deadline(step_tokens) if limit else None
        if deadline:
            unfinished.note(began=deadline.began)
        history = train(
            learner,
            data,
            config,
            unfinished.folder,
            device=self.device,
            bfloat16=self.dtype == torch.bfloat16,
            logs=unfinished.folder.with_suffix(".logs"),
            deadline=deadline,
            progress=self.progress,
        )
        return learner, history

    def learner(self) -> Learner:
        """Load the model, without weights of frozen layers, and make trainable what the method names."""
        checkpoint, config, how = self.checkpoint, self.config, {"dtype": self.dtype, "device": self.device}
        load: Any = Decoder.tail if self.first else Decoder.load
        decoder = load(checkpoint, *[self.first] * bool(self.first), **how)
        torch.manual_seed(config.seed)  # adapters begin at random
        learner = Learner(
            decoder,
            self.first,
            config.method.prepare(checkpoint, decoder),
            temperature=config.temperature,
            next_token_weight=config.next_token_weight,
        )
        if self.dtype != torch.float32:
            learner.take_stored(checkpoint)
        if config.gradient_checkpointing:
            decoder.model.gradient_checkpointing_enable({"use_reentrant": False})
        return learner

    def writer(self, out: str | Path) -> CheckpointWriter:
        return CheckpointWriter(
            out, source=self.checkpoint.directory, nbytes=output_bytes(self.checkpoint, self.config)
        )

    def changed(self, learner: Learner, scratch: Path | None) -> dict[str, StoredTensor]:
        """Spill the trained tensors into a folder; processes without one keep none."""
        tensors = self.config.method.tensors(self.checkpoint, learner)
        spilled = [spill(tensor, scratch / str(number)) for number, tensor in enumerate(tensors) if scratch]
        return {tensor.name: tensor for tensor in spilled}

    def record(self, text: Text, examples: Sequence[Example], history: History, seconds: float) -> dict[str, Any]:
        """Return the record of the healed model."""
        content = repr([(example.ids, example.learn) for example in examples])
        config = {**self.trained_config.to_dict(), "data": public_names(text.source), "teacher": None}
        healing = {
            **self.settings(),
            "config": {name: value for name, value in config.items() if name not in ("device", "report_to")},
            "samples": len(examples),
            "samples_sha256": hashlib.sha256(content.encode()).hexdigest(),
            "history": asdict(history),
        }
        kept = layer_map(self.checkpoint, range(self.checkpoint.anatomy.layers))
        return {**provenance(self.checkpoint, "heal", seconds), "healing": healing, "plan": None, "layer_map": kept}

    def write(self, writer: CheckpointWriter, tensors: Mapping[str, StoredTensor], record: Mapping[str, Any]) -> None:
        """Write the checkpoint with the trained tensors in place of the stored ones, in the same shards."""
        source = self.checkpoint
        shards = layout(
            list({**source.tensors, **tensors}.values()),
            {name: tensor.file.name for name, tensor in source.tensors.items()},
        )
        with writer:
            writer.json("config.json", {**source.config, **self.config.method.config(source)})
            for path in source.side_files():
                writer.copy(path)
            writer.tensors(shards, progress=self.progress)
            writer.commit(record)
