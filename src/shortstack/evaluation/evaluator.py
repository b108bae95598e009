"""evaluate(): what a checkpoint is worth: perplexity on text, and tasks, beside the model it was made from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shortstack.architecture.anatomy import check_positions
from shortstack.checkpoint import Checkpoint, Model
from shortstack.data import Rows, Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import STREAM_BYTES
from shortstack.decoder.requirements import requirements as model_requirements
from shortstack.decoder.requirements import writing_requirements
from shortstack.decoder.streaming import must_stream
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import InputError, ShortstackWarning
from shortstack.evaluation.degeneration import Collapse, check_collapse, collapse_tokens
from shortstack.evaluation.options import EvaluationText, GenerationChecks, Tasks, load_harness
from shortstack.evaluation.paired import Outcomes, Paired, compare, compare_tasks, mismatch
from shortstack.evaluation.perplexity import Perplexity, measure
from shortstack.evaluation.probes import Item, Probed, probe_tokens, probes, run_probes
from shortstack.evaluation.suites import PERPLEXITIES, SUITES
from shortstack.evaluation.task_results import TaskResult, mean_result
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.files import to_jsonable
from shortstack.machine.formats import shown
from shortstack.machine.memory import Requirements
from shortstack.machine.progress import Progress, in_notebooks, silent
from shortstack.machine.tables import Cell, Column, Table, Tabled
from shortstack.machine.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shortstack.evaluation.harness import LoadedTask


FEW = 20  # items of a probe: with fewer its share says little by itself
WRITING = "generation probes"
TEXT, GENERATION = EvaluationText(), GenerationChecks()


UNPAIRED = (None,) * 5


def _together(probes: Mapping[str, Probed]) -> Outcomes:
    """Return the outcomes of all probes, of which each counts the same."""
    documents = [f"{name}/{document}" for name, probe in probes.items() for document in probe.documents]
    outcomes = [right for probe in probes.values() for right in probe.outcomes.values]
    return Outcomes(tuple(documents), tuple(outcomes), macro=True)


def _share(value: float, stderr: float) -> Cell:
    return Cell(value, "score", stderr)


def _paired(paired: Paired | None) -> tuple[Any, ...]:
    if paired is None:
        return UNPAIRED
    kept, above = (share and share / 100 for share in (paired.retention, paired.retention_above_chance))
    known = "unpruned at chance" if paired.base_at_chance else above
    return Cell(paired.difference, stderr=paired.stderr), tuple(paired.interval), paired.p_holm, kept, known


@dataclass(frozen=True, repr=False)
class Evaluation(Tabled):
    """The measurements of one checkpoint.

    base: of the model it was made from. against, probes_against: the tasks and the probes of both, paired.
    """

    model: str
    perplexity: Mapping[str, Perplexity]
    probes: Mapping[str, Probed] = field(default_factory=dict)
    collapse: Collapse | None = None
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    base: Evaluation | None = None
    against: Mapping[str, Paired] = field(default_factory=dict)
    probes_against: Mapping[str, Paired] = field(default_factory=dict)

    def table(self) -> Table:
        """Make a row for each text (its perplexity and its loss), task and probe, beside the unpruned one's where known."""
        texts = ((name, shown(text.value, "perplexity")) for name, text in self.perplexity.items())
        title = ", ".join(f"{value} perplexity on {name}" for name, value in texts)
        counts = f"tasks: {len(self.tasks)}, probes: {len(self.probes)}"
        dtypes = {text.dtype for text in self.perplexity.values()} | {task.dtype for task in self.tasks.values()}
        caption = f"± one standard error. Computed in {', '.join(sorted(dtypes))}." if dtypes else ""
        paired = (
            Column("difference", "difference"),
            Column("95 % interval", "difference"),
            Column("p, Holm", "p"),
            Column("kept", "percent"),
            Column("above chance", "percent"),
        )
        measured = (Column("measured", "text"), "metric", "value", "unpruned", "n", Column("chance", "ratio"), "BOS")
        notes = [*map(self._unit, self.against), *map(self._not_compared, self.tasks.keys() - self.against.keys())]
        notes += map(self._other_tokens, self.perplexity)
        if 0 < self._items_of_a_probe < FEW:
            notes.append(f"With {self._items_of_a_probe} items a probe says little by itself; the JSON has each.")
        if self.collapse:
            notes.append(self.collapse.summary)
        heading = f"{self.model}: {title or 'no text'}; {counts}"
        return Table.of(heading, (*measured, *paired), [*self._rows()], caption=caption, notes=[*filter(None, notes)])

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        base = self.base
        for name, text in self.perplexity.items():
            beside, bos = base.perplexity[name] if base else None, text.windows["bos"]
            yield name, "perplexity", text.cell, beside and beside.cell, text.tokens, None, bos, *UNPAIRED
            yield name, "nats per token", text.loss_cell, beside and beside.loss_cell, text.tokens, None, bos, *UNPAIRED
        for name, task in self.tasks.items():
            other = base.tasks[name].cell if base else None
            yield name, task.metric, task.cell, other, task.n, task.chance, task.bos, *_paired(self.against.get(name))
        yield from self._probe_rows()
        others = replace(base, tasks={name: base.tasks[name] for name in self.tasks}).named_averages if base else {}
        for name, value in self.named_averages.items():
            average = Cell(others.get(name), "score")
            yield name, "mean of shares", Cell(value, "score"), average, None, None, None, *UNPAIRED

    def _probe_rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield a row for each probe, unless one has so few items that they say little, and one for the mean of all."""
        base = self.base
        for name, probe in self.probes.items() if self._items_of_a_probe >= FEW else ():
            other = base.probes[name].cell if base else None
            paired = _paired(self.probes_against.get(name))
            yield name, "accuracy", probe.cell, other, probe.n, probe.chance, None, *paired
        if self.probes_mean:
            other = _share(*base.probes_mean) if base and base.probes_mean else None
            yield (
                WRITING,
                "mean accuracy",
                _share(*self.probes_mean),
                other,
                sum(probe.n for probe in self.probes.values()),
                None,
                None,
                *_paired(self._all_probes),
            )

    @property
    def _items_of_a_probe(self) -> int:
        return min((probe.n for probe in self.probes.values()), default=0)

    @property
    def _all_probes(self) -> Paired | None:
        """The mean of the probes of both, paired."""
        if not (self.base and self.probes_against):
            return None
        return compare(WRITING, _together(self.probes), _together(self.base.probes))

    @property
    def probes_mean(self) -> tuple[float, float] | None:
        """The mean of the probes' shares, and its standard error; None without probes."""
        return mean_result([probe.accuracy for probe in self.probes.values()]) if self.probes else None

    @property
    def named_averages(self) -> dict[str, float]:
        """The average of each suite that was asked whole; where there is none, of all tasks."""
        if self.averages or self.average is None or len(self.tasks) < 2:
            return {f"Average, {suite}": value for suite, value in self.averages.items()}
        return {"Average": self.average}

    def _unit(self, name: str) -> str:
        """Say what a task's difference is of, where it is not of the values in its row."""
        task = self.tasks[name]
        if task.metric in PERPLEXITIES:
            unit = f"log-likelihood in nats per {PERPLEXITIES[task.metric]}, higher is better"
            return f"{name}: unpruned and value are {task.metric}; the difference and its interval are of the {unit}."
        turned = f"{name}: of {task.metric} less is better; the difference and its interval have the sign turned."
        return "" if task.higher_is_better else turned

    def _not_compared(self, name: str) -> str:
        number = f"{self.tasks[name].metric} is one number for all documents, not one for each"
        return f"{name}: not compared, since {number}." if self.base and not self.tasks[name].by_document else ""

    def _other_tokens(self, name: str) -> str:
        known = [side.perplexity[name].windows["sha256"] for side in (self, self.base) if side]
        other = f"{name}: the two were measured on other tokens, so that their perplexities do not compare."
        return other if len({*known}) > 1 else ""

    @property
    def average(self) -> float | None:
        """The plain mean over the tasks whose metric is a share (acc, exact_match); None where there is none.

        A group such as mmlu counts once, with the mean over its documents.
        """
        return self._average(self.tasks)

    @property
    def averages(self) -> dict[str, float]:
        """That of each suite that was asked whole and has several such tasks: of `paper` its eight and no other."""
        whole = {name: suite for name, suite in SUITES.items() if self.tasks.keys() >= set(suite)}
        several = {name: suite for name, suite in whole.items() if sum(self.tasks[task].is_share for task in suite) > 1}
        return {name: average for name, suite in several.items() if (average := self._average(suite)) is not None}

    def _average(self, tasks: Iterable[str]) -> float | None:
        shares = [self.tasks[name].value for name in tasks if self.tasks[name].is_share]
        return math.fsum(shares) / len(shares) if shares else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "perplexity": to_jsonable(self.perplexity),
            "probes": {name: probe.to_dict() for name, probe in self.probes.items()},
            "probes_mean": self.probes_mean,
            "collapse": self.collapse.to_dict() if self.collapse else None,
            "tasks": to_jsonable(self.tasks),
            "average": self.average,
            "averages": self.averages,
            "base": self.base.to_dict() if self.base else None,
            "against": to_jsonable(self.against),
            "probes_against": to_jsonable(self.probes_against),
        }


@typed
def evaluate(
    checkpoint: Model,
    *,
    text: EvaluationText | Rows = TEXT,
    tasks: Tasks | None = None,
    generation: GenerationChecks = GENERATION,
    compute: Compute = AUTO,
    progress: Progress = in_notebooks,
) -> Evaluation:
    """Measure perplexity on each text, tasks, generation probes, and whether what the model writes has collapsed.

    text: also sources by name, or rows in memory: texts, chats or records, as a list or a datasets.Dataset.
    Windows of text and items of probes are drawn by the seed of `compute`.

    >>> evaluate(Checkpoint.open("demo"), tasks=Tasks("piqa", limit=100, data_dir="data")).average  # doctest: +SKIP
    0.69

    Raises:
        DataError: a text cannot be read or is shorter than one window, or a task's documents cannot be had.
        InputError: nothing to measure, an unknown task, a library that is not installed, or no memory for the model.
    """
    return prepare(checkpoint, text=text, tasks=tasks, generation=generation, compute=compute).measured(progress)


@dataclass(frozen=True)
class Prepared:
    """An evaluation of which everything was read and checked that can be before weights are loaded."""

    checkpoint: Checkpoint
    texts: Mapping[str, Tokens]
    items: Sequence[Item]
    collapse: bool
    tasks: Tasks
    loaded: Sequence[LoadedTask]
    compute: Compute

    @property
    def writes(self) -> bool:
        """Whether the model writes, for which all its layers are in memory at once."""
        return bool(self.items or self.collapse or any(loaded.generates for loaded in self.loaded))

    def requirements(self) -> Requirements:
        """Add up the model, and the texts where it is read layer by layer, or what it writes at once."""
        if self.writes:
            return writing_requirements(self.checkpoint, replace(self.compute, stream=False))
        needed = model_requirements(self.checkpoint, self.compute)
        if not needed.streamed:
            return needed
        tokens = max((text.ids.numel() for text in self.texts.values()), default=0)
        task_tokens = STREAM_BYTES if self.loaded else tokens  # it is not counted how much tasks ask
        return model_requirements(self.checkpoint, self.compute, tokens=max(tokens, task_tokens), in_turns=True)

    def measured(self, progress: Progress = in_notebooks) -> Evaluation:
        """Load the model, and measure."""
        checkpoint, tokenizer = self.checkpoint, self.checkpoint.tokenizer()
        compute = replace(self.compute, stream=False) if self.writes else self.compute
        decoder = Decoder.open(checkpoint, compute)
        results = {
            loaded.name: answer_task(loaded, decoder, tokenizer, self.tasks, progress=progress)
            for loaded in self.loaded
        }
        return Evaluation(
            checkpoint.source,
            {source: measure(decoder, tokens, progress=progress) for source, tokens in self.texts.items()},
            run_probes(decoder, tokenizer, self.items, progress=progress),
            check_collapse(decoder.model, tokenizer, progress=progress) if self.collapse else None,
            results,
        )


def prepare(
    checkpoint: Model,
    *,
    text: EvaluationText | Rows = TEXT,
    tasks: Tasks | None = None,
    generation: GenerationChecks = GENERATION,
    compute: Compute = AUTO,
) -> Prepared:
    """Read and check everything evaluate() needs, so that of two models neither is measured in vain."""
    checkpoint, text = Checkpoint.of(checkpoint), EvaluationText.of(text)
    if not (tasks or text.sources or generation.probes or generation.collapse_check):
        raise InputError(
            "nothing to measure",
            expected="a text, tasks, probes or collapse_check",
            fix="name a text, such as pydoc; or add tasks, such as paper, or probes",
            option="perplexity",
        )
    items = probes(compute.seed, generation.probe_items) if generation.probes else ()
    _, tokenizer = checkpoint.anatomy, checkpoint.tokenizer()  # what is no decoder is said before what it lacks
    texts = text.read(tokenizer, compute.seed)
    collapse = _looks_for_collapse(checkpoint, generation, compute)
    _check_lengths(checkpoint, tokenizer, items, collapse=collapse, length=text.length if texts else 0)
    loaded = tasks.load_for(checkpoint) if tasks else []
    ready = Prepared(checkpoint, texts, items, collapse, tasks or Tasks(), loaded, compute)
    if ready.writes and not compute.device_map:
        _check_room_to_write(checkpoint, compute)
    return ready


def answer_task(
    loaded: LoadedTask,
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    *,
    progress: Progress = silent,
) -> TaskResult:
    """Evaluate a model in memory on a task."""

    def staged(_: str, done: int, total: int, /, *, note: str = "") -> None:
        progress(f"answering {loaded.name}", done, total, note=note)

    harness = load_harness()
    model = harness.HarnessModel(decoder, tokenizer, batch=tasks.batch, max_length=tasks.max_length, progress=staged)
    result: TaskResult = harness.run(loaded, model, limit=tasks.limit, seed=tasks.seed)
    return result


def _looks_for_collapse(checkpoint: Checkpoint, generation: GenerationChecks, compute: Compute) -> bool:
    """Decide whether what the model writes freely is looked at: unless somebody says so, of what shortstack cut or healed.

    Of such a model that does not fit in memory it is not: the rest needs it layer by layer alone.
    """
    collapse_check, device = generation.collapse_check, pick_device(compute.device)
    if collapse_check is not None or checkpoint.record.get("verb") not in {"prune", "heal"}:
        return bool(collapse_check)
    if compute.device_map or not must_stream(checkpoint, arithmetic(compute.dtype, checkpoint, device), device):
        return True
    said = "the collapse check is skipped, since the model does not fit in memory"
    warnings.warn(said, ShortstackWarning, stacklevel=3)
    return False


def _check_room_to_write(checkpoint: Checkpoint, compute: Compute) -> None:
    device = pick_device(compute.device)
    fix = (
        "free memory, or evaluate without generation: with collapse_check turned off, no probes and no generative task "
        "the model is read layer by layer"
    )
    checkpoint.check_room(arithmetic(compute.dtype, checkpoint, device), device, fix=fix)


def _check_lengths(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], *, collapse: bool, length: int
) -> None:
    check_positions(checkpoint, length, "length")
    if items:
        check_positions(checkpoint, probe_tokens(tokenizer, items), "probes", fix="leave it out")
    if collapse:
        check_positions(checkpoint, collapse_tokens(tokenizer), "collapse_check", fix="turn it off")


def compared(evaluation: Evaluation, base: Evaluation) -> Evaluation:
    """Set it beside that of the model it was made from: tasks paired document by document, probes item by item.

    A task whose metric is one number of all documents together (mcc, f1) is not paired.

    Raises:
        DataError: the two were not measured on the same texts, tasks, documents and items.
    """
    if evaluation.tasks.keys() != base.tasks.keys():
        raise mismatch("the tasks", {*evaluation.tasks}, {*base.tasks})
    if evaluation.perplexity.keys() != base.perplexity.keys():
        raise mismatch("the texts", {*evaluation.perplexity}, {*base.perplexity})
    together = {name for side in (evaluation, base) for name, task in side.tasks.items() if not task.by_document}
    tasks, base_tasks = (
        {name: task.paired for name, task in side.tasks.items() if name not in together} for side in (evaluation, base)
    )
    items, base_items = ({name: probe.outcomes for name, probe in side.probes.items()} for side in (evaluation, base))
    chances = {name: task.chance for name, task in evaluation.tasks.items() if task.chance is not None}
    probe_chances = {name: probe.chance for name, probe in evaluation.probes.items()}
    collapse = evaluation.collapse
    return replace(
        evaluation,
        collapse=collapse.against(base.collapse) if collapse and base.collapse else collapse,
        base=base,
        against=compare_tasks(tasks, base_tasks, chances=chances),
        probes_against=compare_tasks(items, base_items, chances=probe_chances),
    )
