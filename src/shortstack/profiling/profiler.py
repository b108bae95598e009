"""profile(): count parameters, operations and cache of a checkpoint, and time it, alone or in turns with its base model."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from shortstack.architecture.anatomy import check_positions, meta_model
from shortstack.checkpoint import Checkpoint, Model
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import arithmetic
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.formats import shown, size
from shortstack.machine.memory import available_memory, forget_peak, peak_bytes
from shortstack.machine.progress import Progress, silent
from shortstack.machine.tables import Cell, Column, Table, Tabled
from shortstack.profiling.counts import CacheBytes, Macs, Parts, cache_bytes, macs, parts
from shortstack.profiling.options import Timing
from shortstack.profiling.speed import Load, Ratio, Speeds, rates, ratio, speeds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TIMING = Timing()


@dataclass(frozen=True)
class ModelProfile:
    """Counts of a checkpoint, and its speed at each batch size.

    weight_bytes: of its stored tensors. dtype: of what is cached. macs and cache are None where they depend on values.
    """

    model: str
    parameters: Parts
    weight_bytes: int
    macs: Macs | None
    cache: CacheBytes | None
    dtype: str
    speed: tuple[Speeds, ...] = ()

    def cells(self) -> dict[str, Cell]:
        """Return counts and speeds by their labels in the table."""
        head = {"  head, tied": Cell(0)} if self.parameters.tied else {}
        cells = {"parameters": Cell(self.parameters.total)}
        cells |= {f"  {part}": Cell(amount) for part, amount in self.parameters.parts.items()} | head
        cells["weight bytes"] = Cell(self.weight_bytes, "bytes")
        if self.macs:
            cells[f"MACs per token, {self.macs.tokens} tokens"] = Cell(self.macs.per_token)
            cells |= {"  by the paper's rule, all tokens": Cell(self.macs.paper)} if self.macs.paper else {}
        if self.cache:
            cells[f"cache bytes per token, {self.dtype}"] = Cell(self.cache.per_token)
            if self.cache.per_token_beyond != self.cache.per_token:
                cells["  when all windows are full"] = Cell(self.cache.per_token_beyond)
            cells |= {"  fixed, a sequence": Cell(self.cache.fixed)} if self.cache.fixed else {}
        for speed in self.speed:
            cells[f"prefill, tokens/s, batch {speed.batch}"] = _spread(speed.prefill_runs)
            cells[f"decode, tokens/s, batch {speed.batch}"] = _spread(speed.decode_runs)
        return cells

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "parameters": self.parameters.total,
            "parts": dict(self.parameters.parts),
            "tied": self.parameters.tied,
            "weight_bytes": self.weight_bytes,
            "macs_per_token": self.macs.per_token if self.macs else None,
            "macs": asdict(self.macs) if self.macs else None,
            "kv_bytes_per_token": self.cache.per_token if self.cache else None,
            "cache": self.cache.to_dict() if self.cache else None,
            "dtype": self.dtype,
            "speed": [asdict(speed) for speed in self.speed],
        }


def _spread(runs: Sequence[float]) -> Cell:
    return Cell(statistics.median(runs), "rate", note=f"({shown((min(runs), max(runs)), 'rate')})")


@dataclass(frozen=True)
class SpeedRatios:
    """Speeds of a checkpoint over those of its base model at one batch size, from runs in turns."""

    batch: int
    prefill: Ratio
    decode: Ratio

    @classmethod
    def of(cls, own: Speeds, base: Speeds) -> SpeedRatios:
        prefill = ratio(own.prefill_runs, base.prefill_runs)
        return cls(own.batch, prefill, ratio(own.decode_runs, base.decode_runs))


@dataclass(frozen=True, repr=False)
class Profile(Tabled):
    """Result of profile().

    peak_bytes: the most memory held until the checkpoint alone had run at each batch size: of the device where that is
    CUDA, else of the whole process. untimed: why no speed was measured that was asked for; "" where it was.
    """

    model: ModelProfile
    base: ModelProfile | None
    ratios: tuple[SpeedRatios, ...]
    peak_bytes: int | None
    machine: dict[str, Any]
    untimed: str = ""

    def table(self) -> Table:
        """Return a table of counts, median speeds and peak memory, and their ratios to the base model's."""
        models = [self.model, *([self.base] if self.base else [])]
        cells = [model.cells() for model in models]
        ratios = self._ratios() if self.base else {}
        labels = dict.fromkeys(label for each in cells for label in each)
        rows = [(label, *(each.get(label) for each in cells), ratios.get(label)) for label in labels]
        if self.peak_bytes:
            rows.append(("peak memory", Cell(self.peak_bytes, "bytes"), *[None] * len(models)))
        names = [model.model.rstrip("/").rpartition("/")[2] for model in models]
        names = names if len({*names}) == len(names) else [model.model for model in models]
        title = f"{self.model.model}: {self.model.parameters.total:,} parameters"
        return Table.of(title, (Column("counted", "text"), *names, "ratio"), rows, notes=[*self._notes()])

    def _ratios(self) -> dict[str, Cell]:
        assert self.base  # noqa: S101  its caller has looked
        theirs = self.base.cells()
        pairs = {
            label: (cell.value, theirs[label].value) for label, cell in self.model.cells().items() if label in theirs
        }
        found = {label: Cell(own / other, "ratio") for label, (own, other) in pairs.items() if own and other}
        for timed in self.ratios:
            found[f"prefill, tokens/s, batch {timed.batch}"] = timed.prefill.cell
            found[f"decode, tokens/s, batch {timed.batch}"] = timed.decode.cell
        return found

    def _notes(self) -> Iterator[str]:
        if self.model.speed:
            device, threads = self.machine["device"], self.machine["threads"]
            on = f"cpu, threads: {threads}" if device == "cpu" else device
            yield f"Tokens per second on {on}: the median, in brackets the slowest and the fastest run."
        if self.ratios:
            sure = self.ratios[0].decode.confidence
            interval = f"with its {sure:.0%} confidence interval" if sure else "from one run, without an interval"
            yield f"Speed ratios: median over alternating runs, {interval}."
        if self.untimed:
            yield f"Not timed: {self.untimed}."

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.model.to_dict(),
            "peak_bytes": self.peak_bytes,
            "untimed": self.untimed,
            **self.machine,
            "base": self.base and self.base.to_dict(),
            "ratios": [asdict(ratios) for ratios in self.ratios],
        }


def profile(
    checkpoint: Model,
    *,
    base: Model | None = None,
    timing: Timing = TIMING,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Profile:
    """Count parameters, bytes and multiply-accumulates of a checkpoint, and time it at each batch size; no sizes: no speed.

    base: runs take turns with that model, which gives ratios of speed. What does not fit in memory is counted, not timed.

    Raises:
        InputError: prompt and new tokens, or without sizes the prompt, are more than a model has positions for.
    """
    checkpoints = [Checkpoint.of(model) for model in (checkpoint, base) if model is not None]
    device = pick_device(compute.device)
    loads = [Load(batch, timing.prompt, timing.new_tokens) for batch in timing.batch_sizes]
    for model in checkpoints:
        _check_positions(model, timing)
    dtypes = [arithmetic(compute.dtype, model, device) for model in checkpoints]
    models = [count(model, dtype, tokens=timing.prompt) for model, dtype in zip(checkpoints, dtypes, strict=True)]
    untimed = _lacking(checkpoints, compute, device) if loads else ""
    peak, ratios = None, tuple[SpeedRatios, ...]()
    if loads and not untimed:
        timed, peak = _timed(checkpoints, loads, timing, compute, progress)
        models = [replace(model, speed=tuple(speed)) for model, speed in zip(models, timed, strict=True)]
        ratios = tuple(map(SpeedRatios.of, *timed)) if base is not None else ()
    machine = {"device": device, "threads": torch.get_num_threads()}
    return Profile(models[0], models[1] if base is not None else None, ratios, peak, machine, untimed)


def _check_positions(checkpoint: Checkpoint, timing: Timing) -> None:
    """Refuse a prompt and new tokens that are more than the model has positions for, before it is loaded."""
    if not timing.batch_sizes:
        return check_positions(checkpoint, timing.prompt, "prompt")
    needed = timing.prompt + timing.new_tokens + 1  # and the first new one
    return check_positions(checkpoint, needed, "prompt", fix="ask for fewer, or for fewer new_tokens")


def count(checkpoint: Checkpoint, dtype: torch.dtype, *, tokens: int) -> ModelProfile:
    """Count a checkpoint without loading a weight; the cache as it would be in `dtype`."""
    model = meta_model(checkpoint.directory, trust_remote_code=checkpoint.trust_remote_code).to(dtype)
    return ModelProfile(
        checkpoint.source,
        parts(model, checkpoint.anatomy),
        checkpoint.weight_bytes,
        macs(model, tokens=tokens),
        cache_bytes(model),
        str(dtype).removeprefix("torch."),
    )


def _timed(
    checkpoints: Sequence[Checkpoint], loads: Sequence[Load], timing: Timing, compute: Compute, progress: Progress
) -> tuple[list[tuple[Speeds, ...]], int]:
    """Return each model's speeds, and the peak memory of the first alone."""
    device = pick_device(compute.device)
    forget_peak(device)
    opened = (Decoder.open(checkpoint, replace(compute, stream=False)).model for checkpoint in checkpoints)
    models = [next(opened)]
    for load in loads:
        rates(models[0], load)
    peak = peak_bytes(device)
    models += opened
    timed = [speeds(models, load, repeats=timing.repeats, progress=progress) for load in loads]
    return list(zip(*timed, strict=True)), peak


def _lacking(models: Sequence[Checkpoint], compute: Compute, device: str) -> str:
    """Return why models cannot be in memory together; "" where they can."""
    needed = sum(model.loaded_bytes(arithmetic(compute.dtype, model, device)) for model in models)
    free = available_memory(device)
    return "" if needed <= free else f"the weights take {size(needed)}, and {size(free)} are free on {device}"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the tokens of a prompt, in the model's chat template when it has one."""
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
