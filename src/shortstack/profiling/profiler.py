"""profile(): what a checkpoint weighs, multiplies and caches, and how fast it runs, alone or in turns with another."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
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
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.tables import Cell, Column, Table, Tabled
from shortstack.machine.typed import typed
from shortstack.profiling.counts import CacheBytes, Macs, Parts, cache_bytes, macs, parts
from shortstack.profiling.options import Timing
from shortstack.profiling.speed import Load, Ratio, Speeds, rates, ratio, speeds

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TIMING = Timing()


@dataclass(frozen=True)
class Counts:
    """Counts of a checkpoint that do not depend on the machine.

    weight_bytes: of its stored tensors. dtype: of what is cached. macs and cache are None where they depend on values.
    """

    model: str
    parameters: Parts
    weight_bytes: int
    macs: Macs | None
    cache: CacheBytes | None
    dtype: str

    def cells(self) -> dict[str, Cell]:
        """Return the counts by their labels in the table."""
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
        }


@dataclass(frozen=True)
class SpeedRatios:
    """How much faster the checkpoint is than the other under one load, from runs in turns."""

    batch: int
    prefill: Ratio
    decode: Ratio


@dataclass(frozen=True)
class Against:
    """The other model, and the ratios of speeds."""

    counts: Counts
    speed: tuple[Speeds, ...]
    ratios: tuple[SpeedRatios, ...]


def _spread(runs: Sequence[float]) -> Cell:
    return Cell(statistics.median(runs), "rate", note=f"({shown((min(runs), max(runs)), 'rate')})")


def _ratio(label: str, counted: Sequence[Mapping[str, Cell]]) -> Iterator[Cell | None]:
    if len(counted) > 1:
        ours, theirs = (cells.get(label, Cell(None)).value for cells in counted)
        yield Cell(ours / theirs, "ratio") if ours and theirs else None


@dataclass(frozen=True, repr=False)
class Profile(Tabled):
    """Counts, and what was measured on this machine.

    peak_bytes: the most memory held until the checkpoint alone had run at each batch size: of the device where that is
    CUDA, else of the whole process. untimed: why no speed was measured that was asked for, in words; "" where it was.
    """

    counts: Counts
    speed: tuple[Speeds, ...]
    peak_bytes: int | None
    machine: dict[str, Any]
    against: Against | None = None
    untimed: str = ""

    def table(self) -> Table:
        """Return a table of counts, median speeds and peak memory, and their ratios to the other model's."""
        models = [self.counts, *([self.against.counts] if self.against else [])]
        counted = [counts.cells() for counts in models]
        labels = dict.fromkeys(label for cells in counted for label in cells)
        rows = [(label, *(cells.get(label) for cells in counted), *_ratio(label, counted)) for label in labels]
        for place, speed in enumerate(self.speed):
            speeds = [speed, *([self.against.speed[place]] if self.against else [])]
            for phase in ("prefill", "decode"):
                cells = [_spread(getattr(model_speed, f"{phase}_runs")) for model_speed in speeds]
                cells += [getattr(self.against.ratios[place], phase).cell] if self.against else []
                rows.append((f"{phase}, tokens/s, batch {speed.batch}", *cells))
        if self.peak_bytes:
            rows.append(("peak memory", Cell(self.peak_bytes, "bytes"), *[None] * (2 if self.against else 0)))
        title = f"{self.counts.model}: {self.counts.parameters.total:,} parameters"
        names = [counts.model.rstrip("/").rpartition("/")[2] for counts in models]
        names = names if len({*names}) == len(names) else [counts.model for counts in models]
        columns = (Column("counted", "text"), *names, *(["ratio"] if self.against else []))
        return Table.of(title, columns, rows, notes=[*self._notes()])

    def _notes(self) -> Iterator[str]:
        if self.speed:
            device, threads = self.machine["device"], self.machine["threads"]
            on = f"cpu, threads: {threads}" if device == "cpu" else device
            yield f"Tokens per second on {on}: the median, in brackets the slowest and the fastest run."
        if self.against and self.against.ratios:
            sure = self.against.ratios[0].decode.confidence
            interval = f"with its {sure:.0%} confidence interval" if sure else "from one run, without an interval"
            yield f"Speed ratios: median over alternating runs, {interval}."
        if self.untimed:
            yield f"Not timed: {self.untimed}."

    def to_dict(self) -> dict[str, Any]:
        data = {
            **self.counts.to_dict(),
            "speed": [asdict(speed) for speed in self.speed],
            "peak_bytes": self.peak_bytes,
            "untimed": self.untimed,
            **self.machine,
            "against": None,
        }
        if self.against:
            data["against"] = {
                **self.against.counts.to_dict(),
                "speed": [asdict(speed) for speed in self.against.speed],
                "ratios": [asdict(ratios) for ratios in self.against.ratios],
            }
        return data


@typed
def profile(
    checkpoint: Model,
    *,
    against: Model | None = None,
    timing: Timing = TIMING,
    compute: Compute = AUTO,
    progress: Progress = in_notebooks,
) -> Profile:
    """Count parameters, bytes and multiply-accumulates of a checkpoint, and time it at each batch size; no sizes: no speed.

    against: runs take turns with that model, which gives ratios of speed. What does not fit in memory is
    counted, and not timed.

    Raises:
        InputError: prompt and new tokens, or without sizes the prompt, are more than a model has positions for.
    """
    checkpoint = Checkpoint.of(checkpoint)
    against = Checkpoint.of(against) if against is not None else None
    device = pick_device(compute.device)
    both = [checkpoint, *([against] if against else [])]
    loads = [Load(batch, timing.prompt, timing.new_tokens) for batch in timing.batch_sizes]
    for model in both:
        if loads:
            check_load(model, loads[0])
        else:
            check_positions(model, timing.prompt, "prompt")
    counts = [count(model, arithmetic(compute.dtype, model, device), tokens=timing.prompt) for model in both]
    machine = {"device": device, "threads": torch.get_num_threads()}
    untimed = too_large(both, compute, device) if loads else ""
    if not loads or untimed:
        return Profile(counts[0], (), None, machine, Against(counts[1], (), ()) if against else None, untimed)
    forget_peak(device)
    models = [_loaded(checkpoint, compute)]
    for load in loads:
        rates(models[0], load)
    peak = peak_bytes(device)
    models += [_loaded(against, compute)] if against else []
    timed = [speeds(models, load, repeats=timing.repeats, progress=progress) for load in loads]
    own, *others = (tuple(speed) for speed in zip(*timed, strict=True))
    beside = Against(counts[1], others[0], tuple(map(speed_ratios, own, others[0]))) if against else None
    return Profile(counts[0], own, peak, machine, beside)


def count(checkpoint: Checkpoint, dtype: torch.dtype, *, tokens: int) -> Counts:
    """Count a checkpoint without loading a weight; the cache as it would be in `dtype`."""
    model = meta_model(checkpoint.directory, trust_remote_code=checkpoint.trust_remote_code).to(dtype)
    return Counts(
        checkpoint.source,
        parts(model, checkpoint.anatomy),
        checkpoint.weight_bytes,
        macs(model, tokens=tokens),
        cache_bytes(model),
        str(dtype).removeprefix("torch."),
    )


def speed_ratios(own: Speeds, other: Speeds) -> SpeedRatios:
    """Return the ratios of two speeds under one load, whose runs took turns."""
    prefill = ratio(own.prefill_runs, other.prefill_runs)
    return SpeedRatios(own.batch, prefill, ratio(own.decode_runs, other.decode_runs))


def too_large(models: Sequence[Checkpoint], compute: Compute, device: str) -> str:
    """Return why models cannot be in memory together, in words; "" where they can."""
    needed = sum(model.loaded_bytes(arithmetic(compute.dtype, model, device)) for model in models)
    free = available_memory(device)
    if needed <= free:
        return ""
    weights = "the weights of both take" if len(models) > 1 else "its weights take"
    return f"{weights} {size(needed)}, and {size(free)} are free on {device}"


def _loaded(checkpoint: Checkpoint, compute: Compute) -> PreTrainedModel:
    return Decoder.open(checkpoint, replace(compute, stream=False)).model


def check_load(checkpoint: Checkpoint, load: Load) -> None:
    """Refuse a prompt and new tokens that are more than the model has positions for, before it is loaded."""
    needed, note = load.prompt + load.new_tokens + 1, ", new_tokens and the first new one included"
    check_positions(checkpoint, needed, "prompt", fix="ask for a smaller one, or for fewer new_tokens", note=note)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the tokens of a prompt, in the model's chat template when it has one."""
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
