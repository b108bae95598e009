"""Verbs that say what a model costs, and whether another way to save is the better: profile, compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack import console, tables
from shortstack.cli.application import verb
from shortstack.cli.options import (
    REPAIR_SAMPLES,
    TEXT,
    Compute,
    Device,
    Dtype,
    Model,
    RepairSamples,
    Report,
    Source,
    TaskNames,
    check_unused,
    parse_batch_sizes,
    unused,
)
from shortstack.errors import InputError
from shortstack.metrics import METRICS, metric_named
from shortstack.removals import show_layers

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.comparing import Judging
    from shortstack.contenders import Calibration
    from shortstack.progress import Progress


@dataclass(frozen=True)
class Timed:
    """The runs that speed is measured by."""

    batch_size: Annotated[str, typer.Option(help="Sequences at once: one number, or several with commas.")] = "1,8"
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate after the first.")] = 32
    repeats: Annotated[int, typer.Option(min=1, help="Runs that count, after one to warm up.")] = 6


@verb()
def profile(
    directory: Model,
    timed: Timed,
    source: Source,
    report: Report,
    against: Annotated[
        str | None, typer.Option(help="Another model: runs take turns, for ratios of speed.", show_default=False)
    ] = None,
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of each prompt; MACs are counted over as many.")] = 128,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Count only; no weight is loaded.")] = False,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="What to compute in.")] = Dtype.auto,
) -> None:
    """Count parameters, bytes and multiply-accumulates; measure prefill and decode speed and peak memory."""
    sizes = parse_batch_sizes(timed.batch_size)
    if no_speed:
        check_unused("profile --no-speed", timed)

    from shortstack.profiling import profile as profile_checkpoint
    from shortstack.timing import Load as Generated

    with report.bars() as progress:
        checkpoint = source.open(directory, progress)
        found = profile_checkpoint(
            checkpoint,
            against=replace(source, revision=None).open(against, progress) if against else None,
            batch_sizes=() if no_speed else sizes,
            load=Generated(prompt=prompt, new_tokens=timed.new_tokens),
            repeats=timed.repeats,
            dtype=dtype.value,
            device=device.value,
            progress=progress,
        )
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_profile(found)
    if checkpoint.record:
        report.next_step("evaluate", directory, *source.words)
    else:
        report.next_step("prune", directory, "--drop", "25%", "-o", "pruned", *source.words)
    return None


@dataclass(frozen=True)
class Chosen:
    """On what contenders choose their layers, neurons and masks."""

    text: Annotated[str, typer.Option(help=f"Calibration text: {TEXT}")] = "pydoc"
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows of 128 tokens, drawn by seed.")] = 32
    metric: Annotated[str, typer.Option(help=f"How layers are chosen: {', '.join(METRICS)}.")] = "ppl"
    repair: Annotated[bool, typer.Option("--repair", help="Also with the kept layers refitted in closed form.")] = False
    repair_samples: RepairSamples = REPAIR_SAMPLES
    search: Annotated[
        bool, typer.Option("--search", help="Search for the layers that go, as the recipe `best` does.")
    ] = False
    heal: Annotated[
        str | None,
        typer.Option(help="Also heal the pruned model on this data, as the recipe `best` does.", show_default=False),
    ] = None

    def check(self) -> None:
        """Say what is wrong with the words before any model is opened."""
        metric_named(self.metric)
        if not self.repair and self.repair_samples != REPAIR_SAMPLES:
            raise unused("compare without --repair", "--repair-samples", self.repair_samples)
        if self.search and self.metric != Chosen.metric:
            raise InputError(
                "--search", expected="--search without --metric", found="--metric beside it", fix="give one of them"
            )

    def calibration(self, checkpoint: Checkpoint, compute: Compute, progress: Progress) -> Calibration:
        from shortstack.comparing import healing
        from shortstack.contenders import Calibration
        from shortstack.refitting import HELD_OUT
        from shortstack.tokens import Tokens

        tokenizer, seed = checkpoint.tokenizer(), compute.seed
        return Calibration(
            Tokens.read(self.text, tokenizer, samples=self.samples, seed=seed),
            Tokens.read(self.text, tokenizer, samples=self.repair_samples, seed=seed, at_least=HELD_OUT)
            if self.repair
            else None,
            self.metric,
            self.search,
            healing(self.heal, device=compute.device.value, progress=progress) if self.heal else None,
        )


@dataclass(frozen=True)
class Judged:
    """What contenders are judged on."""

    perplexity: Annotated[str, typer.Option(help="Comma-separated texts. Of pydoc only the held-out part is read.")] = (
        "pydoc"
    )
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512
    task: Annotated[
        list[Path] | None,
        typer.Option(help="Multiple choice, a .jsonl file as for sweep; may be repeated.", show_default=False),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(help="Windows of each text and questions of each file or task.", show_default=False),
    ] = None
    tasks: TaskNames = None
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder of .jsonl or .parquet files for --tasks.", show_default=False)
    ] = None
    include: Annotated[
        Path | None, typer.Option(help="A folder of your own lm-eval task files.", show_default=False)
    ] = None
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of the prompt that speed is measured with.")] = 128
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate after the first.")] = 32
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count, after one to warm up.")] = 6

    def check(self) -> None:
        """Say what is wrong with the words before any model is opened."""
        if self.limit is not None and self.limit < 1:
            raise InputError("--limit", expected="at least 1", found=str(self.limit), fix="leave it out, or name more")

    def judging(self, checkpoint: Checkpoint, seed: int) -> Judging:
        from shortstack.comparing import Judging, multiple_choice, standard
        from shortstack.evaluation import Tasks
        from shortstack.timing import Load
        from shortstack.tokens import Tokens

        tokenizer = checkpoint.tokenizer()
        texts = {
            name: Tokens.read(
                name, tokenizer, samples=self.limit, length=self.length, seed=seed, held_out=True, at_least=1
            )
            for name in (part.strip() for part in self.perplexity.split(","))
        }
        judges = [multiple_choice(self.task, tokenizer, limit=self.limit)] if self.task else []
        if self.tasks:
            asked = Tasks(self.tasks, limit=self.limit, data=self.data_dir, include=self.include, seed=seed)
            judges.append(standard(asked, checkpoint))
        return Judging(texts, judges, Load(prompt=self.prompt, new_tokens=self.new_tokens), self.repeats)


@verb()
def compare(
    model: Model,
    chosen: Chosen,
    judged: Judged,
    compute: Compute,
    source: Source,
    report: Report,
    memory: Annotated[str, typer.Option(help="Share of the unpruned weights' bytes that there is room for.")] = "50%",
    healed: Annotated[
        str | None, typer.Option(help="A healed checkpoint, for a row of its own.", show_default=False)
    ] = None,
) -> None:
    """Compare pruned, quantised and narrowed models at equal bytes of weights."""
    chosen.check()
    judged.check()

    from shortstack.comparing import compare as compare_contenders

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        found = compare_contenders(
            checkpoint,
            chosen.calibration(checkpoint, compute, progress),
            judged.judging(checkpoint, compute.seed),
            memory=memory,
            healed=replace(source, revision=None).open(healed, progress) if healed else None,
            dtype=compute.dtype.value,
            device=compute.device.value,
            progress=progress,
        )
    for warning in found.warnings:
        report.warn(warning)
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_comparison(found)
    layers = show_layers(found.cut).replace(" ", "")
    which = ("--layers", layers) if layers else ("--drop", "25%")
    report.next_step("prune", model, *which, "-o", "pruned", *source.words)
    return None
