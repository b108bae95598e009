"""compare: the shorter model beside quantised, narrower and sparser ones of the same size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.option_groups import Only
from shortstack.cli.options import (
    REPAIR_SAMPLES,
    Model,
    RepairSamples,
    Report,
    Source,
    TaskNames,
    unused,
)
from shortstack.data.sources import TEXT
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.machine.formats import number, size
from shortstack.planning.layer_sets import show_layers
from shortstack.scoring import METRICS
from shortstack.scoring.metrics import metric_named

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.comparison import Calibration, Comparison, Judging
    from shortstack.comparison.comparison import Row
    from shortstack.machine.progress import Progress
    from shortstack.profiling.speed import Ratio


def show_comparison(found: Comparison) -> None:
    """A row for each contender, best first; what each is, and why some are not there; and what that says."""
    rows = [row for row in found.rows if not row.reason]
    title = f"{found.model} in {found.memory} of its bytes, {size(found.budget)}; by perplexity, best first"
    console.show_columns(title, ("", [row.name for row in rows]), _compared(rows))
    console.show("decode and prefill: times the unpruned model's speed, from runs in turns.")
    notes = [(row.name, row.note or row.reason) for row in found.rows if row.note or row.reason]
    console.show_table("what they are", ("", ""), notes)
    for warning in found.warnings:
        console.show(warning)
    console.show(found.advice)


def _compared(rows: Sequence[Row]) -> dict[str, list[str]]:
    """A cell of each row, column by column."""
    return {
        "bytes": [size(row.bytes or 0) for row in rows],
        "fits": ["yes" if row.within else "no" for row in rows],
        **{text: [number(row.perplexity[text].value) for row in rows] for text in rows[0].perplexity},
        **{task: [_of_task(row.tasks[task]) for row in rows] for task in rows[0].tasks},
        "collapsed": ["yes" if row.collapsed else "no" for row in rows],
        "decode": [_times_unpruned(row, row.ratio.decode if row.ratio else None) for row in rows],
        "prefill": [_times_unpruned(row, row.ratio.prefill if row.ratio else None) for row in rows],
    }


def _of_task(found: Mapping[str, Any]) -> str:
    value, stderr = found["value"], found["stderr"]
    return f"{value:.3f} ± {stderr:.3f}" if stderr is not None and math.isfinite(stderr) else f"{value:.3f}"


def _times_unpruned(row: Row, ratio: Ratio | None) -> str:
    return f"{ratio.value:.2f}" if ratio else "1" if row.speed else "-"


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
        from shortstack.comparison import Calibration
        from shortstack.comparison.comparison import healing
        from shortstack.data import Tokens
        from shortstack.data.splits import HELD_OUT

        tokenizer, seed = checkpoint.tokenizer(), compute.seed
        return Calibration(
            Tokens.read(self.text, tokenizer, samples=self.samples, seed=seed),
            Tokens.read(self.text, tokenizer, samples=self.repair_samples, seed=seed, at_least=HELD_OUT)
            if self.repair
            else None,
            self.metric,
            self.search,
            healing(self.heal, device=compute.device, progress=progress) if self.heal else None,
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
        from shortstack.comparison import Judging
        from shortstack.comparison.comparison import multiple_choice, standard
        from shortstack.data import Tokens
        from shortstack.evaluation import Tasks
        from shortstack.profiling.speed import Load

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
    compute: Annotated[Compute, Only("seed", "device", "dtype")],
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

    from shortstack.comparison import compare as compare_contenders

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        found = compare_contenders(
            checkpoint,
            chosen.calibration(checkpoint, compute, progress),
            judged.judging(checkpoint, compute.seed),
            memory=memory,
            healed=replace(source, revision=None).open(healed, progress) if healed else None,
            compute=compute,
            progress=progress,
        )
    for warning in found.warnings:
        report.warn(warning)
    if report.json:
        return console.show_json(found.to_dict())
    show_comparison(found)
    layers = show_layers(found.cut).replace(" ", "")
    which = ("--layers", layers) if layers else ("--drop", "25%")
    report.next_step("prune", model, *which, "-o", "pruned", *source.words)
    return None
