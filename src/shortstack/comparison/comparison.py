"""compare(): is pruning worth it? The unpruned model, pruned, quantised, narrowed and sparse, at equal bytes of weights."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shortstack.architecture.anatomy import check_positions
from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.weights import check_unquantised
from shortstack.comparison.baselines import BASELINES, Baseline, BaselineContext, Calibration, parse_memory
from shortstack.data import Tokens
from shortstack.data.tokens import same_tokens
from shortstack.decoder import Decoder
from shortstack.decoder.requirements import requirements as model_requirements
from shortstack.decoder.requirements import writing_requirements
from shortstack.errors import ArchitectureError, InputError
from shortstack.evaluation import Perplexity, Tasks
from shortstack.evaluation.degeneration import Collapse, check_collapse, collapse_tokens
from shortstack.evaluation.evaluator import answer_task
from shortstack.evaluation.perplexity import measure
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import to_jsonable
from shortstack.machine.formats import number, size
from shortstack.machine.memory import Requirements
from shortstack.machine.progress import Progress, in_notebooks, under
from shortstack.machine.tables import Cell, Column, Table, Tabled
from shortstack.machine.typed import typed
from shortstack.profiling.profiler import SpeedRatios, check_load, speed_ratios
from shortstack.profiling.speed import Load, Speeds, speeds

Judge = Callable[[Decoder], Mapping[str, Mapping[str, Any]]]  # what a model gets: task -> metric, value, stderr, n


@dataclass(frozen=True)
class EvaluationSpec:
    """The evaluation of every row: texts by name, judges of tasks, the load to time under, and the number of timed turns."""

    texts: Mapping[str, Tokens]
    judges: Sequence[Judge] = ()
    load: Load = field(default_factory=lambda: Load(prompt=128))
    repeats: int = 6


@dataclass(frozen=True)
class ComparisonRow:
    """The measurements of one baseline, or the reason why there are none.

    removed: the layers that are gone. ratio: its speed over the unpruned model's, from runs in turns. within: whether its
    weights fit the budget.
    """

    name: str
    note: str
    reason: str
    removed: tuple[int, ...] = ()
    bytes: int | None = None
    within: bool = False
    perplexity: Mapping[str, Perplexity] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    speed: Speeds | None = None
    ratio: SpeedRatios | None = None
    collapse: Collapse | None = None

    @property
    def collapsed(self) -> bool:
        return bool(self.collapse and self.collapse.fallen)

    @property
    def loss(self) -> float:
        """The mean over texts of the loss in nats per token: what rows are sorted by."""
        losses = [measured.loss for measured in self.perplexity.values()]
        return sum(losses) / len(losses) if losses else math.inf

    def cells(self, texts: Iterable[str], tasks: Iterable[str]) -> tuple[Any, ...]:
        """Make the baseline's row of the table; the unpruned model is as fast as itself."""
        speeds = (
            (self.ratio.decode.value, self.ratio.prefill.value) if self.ratio else (1.0 if self.speed else None,) * 2
        )
        task_cells = {name: Cell(result["value"], stderr=result["stderr"]) for name, result in self.tasks.items()}
        return (
            self.name,
            self.bytes,
            None if self.reason else self.within,
            *(self.perplexity[text].cell if text in self.perplexity else None for text in texts),
            *(task_cells.get(task) for task in tasks),
            None if self.collapse is None else self.collapsed,
            *speeds,
            self.reason or self.note,
        )

    def to_dict(self) -> dict[str, Any]:
        collapse = self.collapse.to_dict() if self.collapse else None
        return {**to_jsonable(self), "reason": self.reason or None, "collapse": collapse}


@dataclass(frozen=True, repr=False)
class Comparison(Tabled):
    """Rows by quality, best first, those that could not be had last; and what they say, in words."""

    model: str
    memory: str
    budget_bytes: int
    rows: tuple[ComparisonRow, ...]
    calibration: Mapping[str, Any]
    dtype: str
    device: str
    threads: int

    def table(self) -> Table:
        """Make a row for each baseline, best first, those last that could not be had.

        It says what each is, or why there is none.
        """
        texts = dict.fromkeys(text for row in self.rows for text in row.perplexity)
        tasks = dict.fromkeys(task for row in self.rows for task in row.tasks)
        columns = (
            Column("baseline", "text"),
            Column("bytes", "bytes"),
            "fits",
            *(Column(text, "perplexity") for text in texts),
            *(Column(task, "score") for task in tasks),
            "collapsed",
            Column("decode", "ratio"),
            Column("prefill", "ratio"),
            Column("note", "text"),
        )
        timed = any(row.speed for row in self.rows)
        speed = (
            "Decode and prefill are speeds relative to the unpruned model, from alternating runs."
            if timed
            else "No speed and no collapse check: layers are read one by one."
        )
        share = f"{self.memory} of its bytes, " if "%" in self.memory else ""
        title = f"{self.model} in {share}{size(self.budget_bytes)}"
        rows = [row.cells(texts, tasks) for row in self.rows]
        caption = f"By perplexity, best first. {speed}"
        return Table.of(title, columns, rows, caption=caption, notes=[*self.warnings, self.advice])

    @property
    def advice(self) -> str:
        """The best row within the budget, and the best with fewer layers; rows are sorted by quality.

        A row that has collapsed is not the best while another has not, whatever its perplexity.
        """
        inside = sorted((row for row in self.rows if row.within), key=lambda row: row.collapsed)
        if not inside:
            return f"Nothing here fits {size(self.budget_bytes)}."
        best = inside[0]
        said = f"Within {size(self.budget_bytes)}, {_marked(best)} keeps the most quality: {self._quality(best)}."
        shorter = next((row for row in inside if row.removed or row.name == "healed"), None)
        if shorter and shorter is not best:
            said += f" The best with fewer layers is {_marked(shorter)}: {self._quality(shorter)}."
        return said

    def _quality(self, row: ComparisonRow) -> str:
        unpruned = next(row for row in self.rows if row.name == "unpruned")
        measures = [
            f"perplexity {number(measured.value)} on {text} ({number(unpruned.perplexity[text].value)} unpruned)"
            for text, measured in row.perplexity.items()
        ]
        measures += [
            f"{task} {result['value']:.3f} ({unpruned.tasks[task]['value']:.3f} unpruned)"
            for task, result in row.tasks.items()
        ]
        return ", ".join(measures)

    @property
    def cut(self) -> tuple[int, ...]:
        """The layers that go in the row `pruned`; () where it does not fit."""
        return next((row.removed for row in self.rows if row.name == "pruned" and row.within), ())

    @property
    def warnings(self) -> list[str]:
        """A line for each baseline that has collapsed, with what it writes."""
        return [f"{row.name}: {row.collapse.warning}" for row in self.rows if row.collapse and row.collapsed]

    def to_dict(self) -> dict[str, Any]:
        return {**to_jsonable(self), "rows": [row.to_dict() for row in self.rows], "advice": self.advice}


def _marked(row: ComparisonRow) -> str:
    return row.name + " (collapsed)" * row.collapsed


@typed
def compare(
    checkpoint: Model,
    calibration: Calibration,
    judging: EvaluationSpec,
    *,
    memory: str = "50%",
    compute: Compute = AUTO,
    progress: Progress = in_notebooks,
) -> Comparison:
    """Judge every baseline that there is for weights of at most `memory` of the unpruned ones' bytes.

    calibration: what layers, neurons and masks are chosen on. Two models are in memory at a time, the unpruned one and a
    baseline; checkpoints of baselines are in a temporary folder until the end. A model that does not fit is read layer by
    layer: it gets no speed and writes nothing, and there is none in fewer bits or with masks.

    Raises:
        CheckpointError: its weights are quantised already.
        InputError: `memory` is no share, or less than what no baseline makes smaller; texts are longer than a model has
            positions for; or `calibration.healed` has another tokenizer.
        OutputError: the temporary folder has no room.
    """
    checkpoint = Checkpoint.of(checkpoint)
    budget = check_comparison(checkpoint, calibration, judging, memory)
    base = Decoder.open(checkpoint, compute)
    with tempfile.TemporaryDirectory(prefix="shortstack-compare-") as folder:
        context = BaselineContext(checkpoint, budget, calibration, base, Path(folder), compute.stream, progress)
        rows = [_row(baseline, context, judging) for kind in BASELINES for baseline in kind(context)]
    return Comparison(
        checkpoint.source,
        memory,
        budget,
        tuple(sorted(_beside_unpruned(rows), key=lambda row: row.loss)),
        {"metric": calibration.metric, **calibration.tokens.record()},
        base.dtype,
        str(base.device),
        torch.get_num_threads(),
    )


def check_comparison(checkpoint: Checkpoint, calibration: Calibration, judging: EvaluationSpec, memory: str) -> int:
    """Return the bytes that weights may take, once it is clear that all rows can be judged."""
    check_unquantised(checkpoint, "to hold in fewer bits", "compare")
    budget = parse_memory(memory, checkpoint.weight_bytes, least=checkpoint.sizes.other_bytes)
    _check_lengths(checkpoint, judging)
    if healed := calibration.healed_checkpoint:
        _check_lengths(healed, judging)
        _check_tokens(checkpoint, healed)
    return budget


def requirements(checkpoint: Checkpoint, calibration: Calibration, budget: int, compute: Compute) -> Requirements:
    """Count what two models at a time take, which write where they fit; on the disk all baselines' checkpoints, to the end.

    What is in int8 is stored in 16 bits.
    """
    alone = model_requirements(checkpoint, compute)
    repaired = calibration.repair is not None
    inside = 2 + repaired  # pruned and narrowed
    in_int8 = (1 + repaired) * min(2 * budget, checkpoint.weight_bytes)
    disk = inside * budget + in_int8
    if alone.streamed:
        return replace(alone, disk_bytes=inside * budget)
    writing = writing_requirements(checkpoint, compute)
    return replace(writing, memory_bytes=alone.memory_bytes + writing.memory_bytes, disk_bytes=disk)


def _check_lengths(checkpoint: Checkpoint, judging: EvaluationSpec) -> None:
    for tokens in judging.texts.values():
        check_positions(checkpoint, tokens.ids.shape[1], "length")
    check_load(checkpoint, judging.load)
    written, note = collapse_tokens(checkpoint.tokenizer()), ", generated for the collapse check"
    fix = "measure it with evaluate, with collapse_check turned off"
    check_positions(checkpoint, written, "", fix=fix, note=note, where="compare")


def _check_tokens(checkpoint: Checkpoint, healed: Checkpoint) -> None:
    """Refuse a model to which token ids mean something else: all rows are judged on the same ones."""
    theirs, mine = checkpoint.tokenizer(), healed.tokenizer()
    wanted, known = min(len(theirs), checkpoint.vocabulary), healed.vocabulary
    same = same_tokens(theirs, mine)
    if same and wanted <= known:
        return
    raise InputError(
        f"{known:,} embeddings" if same else f"another tokenizer, of {len(mine):,} tokens",
        expected=f"the tokenizer of {checkpoint.source}, and an embedding for each of its {wanted:,} tokens",
        fix="name a model made from that one, or give this one to evaluate",
        option="healed",
    )


@torch.no_grad()
def _row(baseline: Baseline, context: BaselineContext, judging: EvaluationSpec) -> ComparisonRow:
    if baseline.make is None:
        return ComparisonRow(baseline.name, baseline.note, baseline.reason)
    try:
        decoder, nbytes = baseline.make()
    except ArchitectureError as error:  # weights that are stored in another form: the reason is for the table
        return ComparisonRow(baseline.name, baseline.note, f"{error.expected}, found {error.found}")
    staged = under(context.progress, f"{baseline.name}: ")
    perplexity = {name: measure(decoder, tokens, progress=staged) for name, tokens in judging.texts.items()}
    loaded = not decoder.weights and not context.base.weights
    speed, ratio = _timed(decoder, context.base, judging, staged) if baseline.timed and loaded else (None, None)
    return ComparisonRow(
        baseline.name,
        baseline.note,
        "",
        baseline.removed,
        nbytes,
        baseline.timed and nbytes <= context.budget,
        perplexity,
        {name: result for judge in judging.judges for name, result in judge(decoder).items()},
        speed,
        ratio,
        check_collapse(decoder.model, context.checkpoint.tokenizer(), progress=staged) if loaded else None,
    )


def _beside_unpruned(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Return the rows, what each writes judged by what the first, the unpruned model, does."""
    base = rows[0].collapse
    return [
        replace(row, collapse=row.collapse.against(base)) if base and row.collapse and row is not rows[0] else row
        for row in rows
    ]


def _timed(
    decoder: Decoder, base: Decoder, judging: EvaluationSpec, progress: Progress
) -> tuple[Speeds, SpeedRatios | None]:
    models = [decoder.model] if decoder is base else [decoder.model, base.model]
    speed, *unpruned = speeds(models, judging.load, repeats=judging.repeats, progress=progress)
    return speed, speed_ratios(speed, unpruned[0]) if unpruned else None


def judge_tasks(tasks: Tasks, checkpoint: Checkpoint, *, compute: Compute = AUTO) -> Judge:
    """Return a judge of the checkpoint's baselines on tasks of lm-evaluation-harness. compute: of the comparison.

    Raises:
        InputError: a task is to be written by a model that is read layer by layer.
    """
    loaded, tokenizer = tasks.load_for(checkpoint), checkpoint.tokenizer()
    written = next((task.name for task in loaded if task.generates), None)
    if written and model_requirements(checkpoint, compute).streamed:
        expected = "tasks by likelihood, since the model's layers are read one by one"
        raise InputError(written, expected=expected, fix="leave it out", option="tasks")

    def judge(decoder: Decoder) -> dict[str, dict[str, Any]]:
        results = {task.name: answer_task(task, decoder, tokenizer, tasks) for task in loaded}
        return {
            name: {"metric": result.metric, "value": result.value, "stderr": result.stderr, "n": result.n}
            for name, result in results.items()
        }

    return judge
