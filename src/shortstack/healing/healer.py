"""heal(): train part of a pruned checkpoint and write it as a new one."""

from __future__ import annotations

import hashlib
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from shortstack.architecture.anatomy import check_positions
from shortstack.charts.chart import Chart, Point, Series, axis
from shortstack.charts.drawing import HEIGHT
from shortstack.charts.picture import Panel, Picture, short
from shortstack.checkpoint import Checkpoint, CheckpointWriter, Model
from shortstack.checkpoint.record import layer_map, provenance
from shortstack.checkpoint.safetensors import StoredTensor, spill
from shortstack.checkpoint.weights import check_unquantised
from shortstack.checkpoint.writer import layout
from shortstack.data import Example, Rows, Text, read_examples
from shortstack.data.examples import own_samples
from shortstack.data.sources import OWN
from shortstack.data.text import public_names
from shortstack.data.tokens import same_tokens
from shortstack.decoder import Decoder, with_own_text
from shortstack.errors import InputError, ShortstackWarning, TrainingError
from shortstack.healing.config import HealingConfig
from shortstack.healing.frozen import Freezer
from shortstack.healing.learner import Data, Learner
from shortstack.healing.pacing import affordable_samples, kept_pacing
from shortstack.healing.schedule import LOSSES, Schedule
from shortstack.healing.task import HealingTask, TrainingData, task_of_config
from shortstack.healing.training import Environment, History, train, training_device
from shortstack.healing.unfinished import Unfinished
from shortstack.machine.cache import cache_limit, library_versions
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute, fast_bfloat16
from shortstack.machine.files import scratch_beside
from shortstack.machine.formats import number, option_words, shown
from shortstack.machine.memory import peak_rss
from shortstack.machine.progress import Progress, in_notebooks, silent
from shortstack.machine.tables import Cell, Table, Tabled
from shortstack.machine.typed import typed
from shortstack.profiling.speed import forward_speed

BY_CLOCK = ("data", "max_samples", "held_out")  # of TrainingData, what a clock changes
LAST, LITTLE, AGAIN = 1 / 3, 0.01, 2  # a part of the steps that gains less of the loss, once samples passed so often
WRITING_SECONDS, WRITING_BYTES_PER_S = 3.0, 1e8  # kept of a clock for the output: merged, written and synced


@dataclass(frozen=True, repr=False)
class Healing(Tabled):
    """The outcome of healing; the healed checkpoint is at `output`. objective: the loss, sft or distill.

    samples: that there were, held-out ones included. trained_layers: by the numbers that they have in it. repeat: options
    that repeat a run by the clock without one.
    """

    output: Path
    method: str
    objective: str
    trainable_parameters: int
    history: History
    samples: int
    seconds: float
    peak_rss_bytes: int
    trained_layers: tuple[int, ...] = ()
    repeat: Mapping[str, Any] | None = None

    def table(self) -> Table:
        history, losses = self.history, [loss for _, loss in self.history.losses]
        held_out = [loss for _, loss in history.held_out]
        kind = LOSSES[self.objective]
        ends = (losses[0], losses[-1]) if len(losses) > 1 else next(iter(losses), None)  # of few steps there is one
        rows = [
            ("trained parameters", self.trainable_parameters),
            ("learning rate", f"{history.settings['learning_rate']:g}"),
            ("optimizer steps", history.steps),
            ("training loss, first to last", Cell(ends, "loss")),
            (f"held-out {kind}, before to best", Cell((held_out[0], min(held_out)), "loss")),
            ("tokens per second", Cell(history.tokens_per_s, "rate")),
            ("time", Cell(self.seconds, "seconds")),
            ("peak memory", Cell(self.peak_rss_bytes, "bytes")),
        ]
        course = f"held-out {kind} {shown((held_out[0], min(held_out)), 'loss')}"
        return Table.of(f"{self.output} by {self.method}: {course}", ("healed", ""), rows, notes=[*self._notes()])

    @property
    def greedy_kept(self) -> tuple[float, float] | None:
        """Share of the teacher's likeliest tokens on held-out samples that were the model's before healing, and are now."""
        kept = dict(self.history.greedy)
        return (kept[0], kept[self.history.best]) if kept else None

    @property
    def plateau(self) -> str | None:
        """Say that more minutes would bring nothing, where a run by the clock saw all samples again and gained LITTLE."""
        history = self.history
        if self.repeat is None or not history.best:
            return None
        batch = history.settings["per_device_train_batch_size"] * history.settings["gradient_accumulation_steps"]
        before = min(loss for step, loss in history.held_out if step <= (1 - LAST) * history.steps)
        gained = max(0.0, 1 - dict(history.held_out)[history.best] / before)
        if history.steps * batch < AGAIN * self.samples or gained >= LITTLE:
            return None
        return f"The last third of the steps lowered the held-out loss by {gained:.1%}: more minutes need more data."

    @property
    def remarks(self) -> list[str]:
        """Say how often it would write what the teacher writes, and whether more minutes would bring nothing."""
        notes = []
        if self.greedy_kept:
            before, now = (f"{share:.1%}" for share in self.greedy_kept)
            notes.append(
                f"On held-out samples its top token is the unpruned model's {now} of the time (before: {before})."
            )
        return [*notes, self.plateau] if self.plateau else notes

    def _notes(self) -> Iterator[str]:
        history = self.history
        yield from self.remarks
        if not history.best:
            yield "No held-out loss was lower than the one before training: the weights are as they were."
        elif history.best < history.steps:
            yield f"The weights are those of step {history.best}, where the held-out loss was lowest."
        if history.stopped:
            yield f"Training ended at step {history.steps}: {history.stopped}."
        elif history.skipped:
            yield f"{history.skipped} steps were skipped: non-finite gradient."
        if self.repeat:
            yield f"To repeat it without a clock: {shlex.join(option_words(self.repeat))}"

    def plot(self) -> Picture:
        """Draw training and held-out loss over optimizer steps."""
        return loss_picture(self.history, str(self.output), kind=LOSSES[self.objective])

    def to_dict(self) -> dict[str, Any]:
        losses, held_out = self.history.losses, self.history.held_out
        return {
            "output": str(self.output),
            "method": self.method,
            "objective": self.objective,
            "samples": self.samples,
            "trainable_parameters": self.trainable_parameters,
            "trained_layers": list(self.trained_layers),
            "loss": {
                "first": losses[0][1] if losses else None,
                "last": losses[-1][1] if losses else None,
                "held_out": min(loss for _, loss in held_out),
                "held_out_before": held_out[0][1],
            },
            "greedy_kept": self.greedy_kept,
            "learning_rate": self.history.settings["learning_rate"],
            "steps": self.history.steps,
            "best_step": self.history.best,
            "skipped_steps": self.history.skipped,
            "stopped": self.history.stopped,
            "tokens_per_s": self.history.tokens_per_s,
            "losses": [list(entry) for entry in losses],
            "held_out_losses": [list(entry) for entry in held_out],
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "repeat": self.repeat,
        }


def loss_picture(history: History, title: str, *, kind: str = LOSSES["sft"]) -> Picture:
    """Draw the losses over optimizer steps, in nats per token, and mark the step whose weights were kept.

    kind: what the loss of held-out samples is; that of training may have text beside it.
    """
    lines = [
        Series(name, [Point(step, loss, f"step {step}, {name}: {loss:.4f}") for step, loss in losses], colour)
        for name, losses, colour in (("training loss", history.losses, 5), (f"held-out {kind}", history.held_out, 0))
        if losses
    ]
    every = [point for line in lines for point in line.points]
    x = axis("optimizer steps", [point.x for point in every], "{:,g}".format, whole=True)
    y = axis("loss (nats per token)", [point.y for point in every], number)
    svg = Chart(title, x, y, lines, marks=[("kept", float(history.best))]).svg()
    return Picture(short(title), [Panel("", svg, HEIGHT, [(line.colour, line.name) for line in lines])])


@typed
def heal(
    checkpoint: Model,
    out: str | Path,
    task: HealingConfig | HealingTask | Rows,
    *,
    base: Model | None = None,
    clock: Clock | None = None,
    speed: float | None = None,
    resume: bool | None = None,
    progress: Progress = in_notebooks,
) -> Healing:
    """Train the part of the checkpoint that the task's method names, and write the result to the new `out`.

    task: its data alone, text or instructions, where all else is as usual. Some samples are held out (5 % unless a number
    is given) and never trained on; the weights with the lowest loss on them are written. What is frozen, and what a teacher
    says, is computed once and kept in the cache. The state of the training is kept beside `out`, and goes when it ends;
    resume says what to do with one that is there. clock: all of it ends with this one, as with the schedule's minutes, which
    are counted from now on.

    Raises:
        DataError: the data cannot be read.
        CheckpointError: the weights are quantised, so that training them would change their format.
        InputError: options that exclude each other, or a state that belongs to another run.
        OutputError: `out` exists, is nested in the input, does not fit the disk, or has an unfinished run beside it.
        TrainingError: losses or gradients were no numbers; nothing is written.
    """
    checkpoint = Checkpoint.of(checkpoint)
    started = time.perf_counter()
    if isinstance(task, HealingConfig):
        compute = Compute(device=task.device)
        task = task_of_config(task, base=base if task.needs_base else task.teacher, compute=compute)
    task = HealingTask.of(task)
    clock = clock or started_clock(task.schedule, out, resume=resume)
    run = HealingRun(checkpoint, task, progress, clock, speed=speed)
    run.check()
    writer = run.writer(out)
    with writer.held() if run.processes.is_main_process else nullcontext():
        unfinished = Unfinished(writer.out)
        if run.processes.is_main_process:  # which may be removing it when another process comes here
            unfinished.check_ours()
        run = run.in_time(unfinished.settings() if resume else {})
        examples = run.examples()
        record = run.record(examples)
        with run.processes.main_process_first():
            folder = unfinished.open(record, resume=resume if run.processes.is_main_process else True)
        try:
            learner, history = run.train(examples, folder)
        except TrainingError:  # the state leads nowhere
            unfinished.remove()
            raise
        with scratch_beside(writer.out) if run.processes.is_main_process else nullcontext() as scratch:
            tensors, repeat = run.changed(learner, scratch), run.repeating(history)
            seconds = round(time.perf_counter() - started, 3)
            if scratch:
                parts = {name: _public(record[name]) for name in ("data", "asked")}
                healing = {**record, **parts, "history": asdict(history), "repeat": _public(repeat)}
                run.write(writer, tensors, {**provenance(checkpoint, "heal", seconds), "healing": healing})
                unfinished.remove()
    run.processes.wait_for_everyone()
    method, loss = run.task.method, run.task.objective.loss
    layers, count = method.trained_layers(checkpoint), learner.trainable_parameters
    return Healing(writer.out, method.name, loss, count, history, len(examples), seconds, peak_rss(), layers, repeat)


def _public(data: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return options of data with its sources as others may see them."""
    return data and {**data, **({"data": public_names(data["data"])} if "data" in data else {})}


def started_clock(
    schedule: Schedule, out: str | Path, *, resume: bool | None = None, used: float = 0.0
) -> Clock | None:
    """Start a clock of the schedule's minutes, if it has any, less what a run that goes on has used, and `used` seconds."""
    if schedule.minutes is None:
        return None
    kept = kept_pacing(Unfinished(Path(out)).state) if resume else {"used": 0.0}
    return Clock(60 * schedule.minutes, used=kept["used"] + used)


@dataclass(frozen=True)
class HealingRun:
    checkpoint: Checkpoint
    task: HealingTask
    progress: Progress = silent
    clock: Clock | None = None
    asked: TrainingData | None = None  # where the clock left less of it
    speed: float | None = None  # forward tokens a second; measured if None

    @cached_property
    def device(self) -> str:
        return training_device(self.task.compute.device)

    @cached_property
    def processes(self) -> PartialState:
        """Those that `accelerate launch` started, or this one."""
        return PartialState(cpu=self.device == "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that frozen layers compute in."""
        return torch.bfloat16 if fast_bfloat16(self.device) else torch.float32

    @cached_property
    def freezer(self) -> Freezer:
        teacher = self.task.unpruned if self.task.objective.teaches else None
        return Freezer(self.checkpoint, self.dtype, self.device, self.task.objective, teacher, self.progress)

    @cached_property
    def first(self) -> int:
        return self.task.method.first(self.checkpoint)

    @property
    def schedule(self) -> Schedule:
        """The task's, with a learning rate."""
        schedule, rate = self.task.schedule, self.task.method.learning_rate(self.checkpoint)
        return replace(schedule, learning_rate=schedule.learning_rate or rate)

    def check(self) -> None:
        self.task.check()
        cache_limit()
        _ = self.checkpoint.record  # goes into the result's; what is wrong with it is said now
        check_unquantised(self.checkpoint, "to train", "heal")
        self.task.method.first(self.checkpoint)

    def in_time(self, kept: Mapping[str, Any]) -> HealingRun:
        """Return the run with as many samples as its clock has time for; one that goes on keeps those it began with."""
        if self.clock is None:
            return self
        asked, before = self.task.data, kept.get("data", {})
        begun = {name: before.get(name) for name in BY_CLOCK}
        data = replace(asked, **begun) if kept else self._affordable(asked, self.clock)
        return replace(self, task=replace(self.task, data=data), asked=asked)

    def _affordable(self, data: TrainingData, clock: Clock) -> TrainingData:
        """Return the data with as many samples as there is time for, of which at most half are held out."""
        teacher, tokenizer = self.task.unpruned, self.checkpoint.tokenizer()
        layers = max(model.anatomy.layers for model in (self.checkpoint, teacher) if model)
        speed = self.speed or forward_speed(self.checkpoint, dtype=self.dtype, device=self.device, layers=layers)
        least = max(self.task.schedule.batch_size, 2)
        write = self._written if data.own else None
        affordable = affordable_samples(data, tokenizer, clock, speed=speed, least=least, write=write)
        ((source, samples, whole),) = broadcast_object_list([affordable])  # processes differ in speed
        if samples == whole and source == data.data:
            return data
        if self.processes.is_main_process:
            of_all = "" if whole is None else f" of the {whole:,}"
            several = whole is None and len(data.text.sources) > 1
            limits = "the time and the shortest source allow" if several else "the time allows"
            said = f"healing uses {samples:,}{of_all} samples, as many as {limits}"
            said += "" if source == data.data else f", and less text of the teacher's own: {Text(source).name}"
            warnings.warn(said, ShortstackWarning, stacklevel=2)
        held_out = data.held_out and min(data.held_out, samples // 2)
        return replace(data, data=source, max_samples=int(samples), held_out=held_out)

    def repeating(self, history: History) -> dict[str, Any] | None:
        """Return the options that repeat a run by the clock without one; None of other runs, or where no step was taken."""
        if self.clock is None or not history.steps:
            return None
        length = {name: history.settings[name] for name in ("max_steps", "replanned", "eval_steps")}
        data = self.task.data
        repeat = {"data": data.data, "max_samples": data.max_samples, "held_out": data.held_out, **length}
        return {name: value for name, value in repeat.items() if value is not None}

    def _written(self, text: Text, windows: int, deadline: Clock | None = None) -> Text:
        """Have the teacher write its part of the data."""
        assert self.task.unpruned  # noqa: S101  the task was checked
        compute = replace(self.task.compute, seed=self.task.schedule.seed)
        how: dict[str, Any] = {"deadline": deadline, "compute": compute, "progress": self.progress}
        return with_own_text(text, self.task.unpruned, windows=windows, **how)

    def writer(self, out: str | Path) -> CheckpointWriter:
        return CheckpointWriter(out, source=self.checkpoint.directory, nbytes=self.written_bytes)

    @property
    def written_bytes(self) -> int:
        return self.checkpoint.weight_bytes + self.task.method.added_bytes(self.checkpoint)

    def examples(self, *, dry_run: bool = False) -> list[Example]:
        """Read the samples, the held-out ones first. dry_run: a teacher writes nothing."""
        data, teacher, seed = self.task.data, self.task.unpruned, self.task.schedule.seed
        if (
            teacher
            and (data.own or teacher.has_tokenizer)
            and not same_tokens(self.checkpoint.tokenizer(), teacher.tokenizer())
        ):
            raise InputError(
                f"other tokens in {teacher.source}",
                expected="a teacher to which every token id means the same",
                fix="name the unpruned model",
                option="teacher",
            )
        with self.processes.main_process_first():
            text, tokenizer = data.text, self.checkpoint.tokenizer()
            if dry_run:
                text = text.replacing({OWN: "recall"})
            elif data.own:
                text = self._written(text, own_samples(text, tokenizer, seed))
            examples = read_examples(text, tokenizer, seed)
        check_positions(self.checkpoint, max((len(example.ids) for example in examples), default=0), "max_length")
        return examples

    def record(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Record all that the outcome depends on, for the healed checkpoint and for a run that goes on."""
        task = self.task
        content = repr([(example.ids, example.learn) for example in examples])
        return {
            "model": self.checkpoint.identity,
            "dtype": str(self.dtype).removeprefix("torch."),
            "libraries": library_versions(),
            "method": task.method.to_dict(),
            "objective": asdict(task.objective),
            "teacher": task.unpruned and task.unpruned.identity,
            "schedule": asdict(self.schedule),
            "data": {**asdict(task.data), "sha256": hashlib.sha256(content.encode()).hexdigest()},
            "samples": len(examples),
            "asked": self.asked and {name: getattr(self.asked, name) for name in BY_CLOCK},
        }

    def train(self, examples: Sequence[Example], folder: Path) -> tuple[Learner, History]:
        """Compute what is frozen, or find it on disk; then train."""
        task = self.task
        held_out = task.data.held_out_among(examples)
        with self.processes.main_process_first():
            frozen = self.freezer.fill(self.freezer.planned(examples, self.first))
        decoder = self.decoder()
        learner = self.learner(decoder)
        if task.schedule.gradient_checkpointing:
            decoder.model.gradient_checkpointing_enable({"use_reentrant": False})
        training = range(held_out, len(examples))
        data = Data(training, range(held_out), frozen.lengths[held_out:], frozen.collate)
        logs = folder.with_suffix(".logs")
        writing = WRITING_SECONDS + self.checkpoint.weight_bytes / WRITING_BYTES_PER_S
        clock = self.clock and self.clock.reserving(writing)
        environment = Environment(self.device, self.dtype == torch.bfloat16, task.loggers, logs, self.progress, clock)
        return learner, train(learner, data, self.schedule, folder, environment=environment)

    def changed(self, learner: Learner, scratch: Path | None) -> dict[str, StoredTensor]:
        """Spill the tensors that training changed into a folder; processes that have none keep none."""
        tensors = self.task.method.tensors(self.checkpoint, learner)
        kept = [spill(tensor, scratch / str(number)) for number, tensor in enumerate(tensors) if scratch]
        return {tensor.name: tensor for tensor in kept}

    def write(self, writer: CheckpointWriter, tensors: Mapping[str, StoredTensor], record: Mapping[str, Any]) -> None:
        """Write the checkpoint with the tensors that changed in place of what they were, in the same shards."""
        source = self.checkpoint
        written = {**source.tensors, **tensors}
        origin = {name: tensor.file.name for name, tensor in source.tensors.items()}
        with writer:
            writer.json("config.json", {**source.config, **self.task.method.config(source)})
            for path in source.side_files():
                writer.copy(path)
            writer.tensors(layout(list(written.values()), origin), progress=self.progress)
            kept = layer_map(source, range(source.anatomy.layers))
            writer.commit({**record, "plan": None, "layer_map": kept})

    def learner(self, decoder: Decoder) -> Learner:
        task = self.task
        torch.manual_seed(task.schedule.seed)  # adapters begin at random
        learner = Learner(decoder, self.first, task.method.prepare(self.checkpoint, decoder), task.objective)
        if self.dtype != torch.float32:
            learner.take_stored(self.checkpoint)
        return learner

    def decoder(self) -> Decoder:
        """Load the model without weights for the layers that are frozen."""
        if self.first:
            return Decoder.tail(self.checkpoint, self.first, dtype=self.dtype, device=self.device)
        return Decoder.load(self.checkpoint, dtype=self.dtype, device=self.device)
