"""evaluate(): what a checkpoint is worth: perplexity on text, and tasks, beside the model it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shortstack.architecture.positions import check_positions
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import InputError, parameter
from shortstack.evaluation.degeneration import Collapse, check_collapse, collapse_tokens
from shortstack.evaluation.paired import Outcomes, Paired, compare_tasks
from shortstack.evaluation.perplexity import Perplexity, measure
from shortstack.evaluation.probes import Item, Probed, probe_tokens, probes, run_probes
from shortstack.evaluation.suites import SHARES, SUITES
from shortstack.evaluation.task_results import TaskResult
from shortstack.evaluation.tasks import VLLM, Asked, Tasks
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one checkpoint.

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

    @property
    def average(self) -> float | None:
        """The plain mean over the tasks whose metric is a share (acc, exact_match); None where there is none.

        A group such as mmlu counts once, with the mean over its documents.
        """
        return self._average(self.tasks)

    @property
    def averages(self) -> dict[str, float]:
        """The same of each suite that was asked whole and has several such tasks: of `paper` its eight and no other."""
        whole = {name: suite for name, suite in SUITES.items() if self.tasks.keys() >= set(suite)}
        several = {name: suite for name, suite in whole.items() if sum(map(self._is_share, suite)) > 1}
        found = {name: self._average(suite) for name, suite in several.items()}
        return {name: average for name, average in found.items() if average is not None}

    def _is_share(self, task: str) -> bool:
        return self.tasks[task].metric in SHARES

    def _average(self, tasks: Iterable[str]) -> float | None:
        shares = [self.tasks[name].value for name in tasks if self._is_share(name)]
        return math.fsum(shares) / len(shares) if shares else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "perplexity": {name: found.to_dict() for name, found in self.perplexity.items()},
            "probes": {name: found.to_dict() for name, found in self.probes.items()},
            "collapse": self.collapse.to_dict() if self.collapse else None,
            "tasks": {name: found.to_dict() for name, found in self.tasks.items()},
            "average": self.average,
            "averages": self.averages,
            "base": self.base.to_dict() if self.base else None,
            "against": {name: found.to_dict() for name, found in self.against.items()},
            "probes_against": {name: found.to_dict() for name, found in self.probes_against.items()},
        }


def evaluate(
    checkpoint: Checkpoint,
    *,
    perplexity: Sequence[str] | str = ("pydoc",),
    tasks: Tasks | None = None,
    length: int = 512,
    samples: int | None = None,
    probe_items: int = 0,
    collapse: bool | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Evaluation:
    """Perplexity on each text, the tasks, the generation probes, and whether what the model writes has collapsed.

    perplexity: consecutive windows of `length` tokens, all of them, or `samples` drawn by seed; of `pydoc` only the held-out
    part is read; empty for none. probe_items: so many items of each probe, drawn by seed. collapse: whether to check what
    the model writes freely; None: where shortstack cut or healed it. A task's result is kept in the cache under the digest
    of all that it depends on.

    >>> evaluate(Checkpoint.open("demo"), tasks=Tasks("piqa", limit=100, data="data")).average  # doctest: +SKIP
    0.69

    Raises:
        DataError: a text cannot be read or is shorter than one window, or a task's documents cannot be had.
        InputError: nothing to measure, an unknown task, a library that is not installed, or no memory for the model.
    """
    if tasks:
        tasks.check(compute.device)
    sources = [name.strip() for name in perplexity.split(",")] if isinstance(perplexity, str) else list(perplexity)
    _check_something(sources, tasks or probe_items or collapse)
    items = probes(compute.seed, probe_items) if probe_items else ()
    _, tokenizer = checkpoint.anatomy, checkpoint.tokenizer()  # what is no decoder is said before what it lacks
    texts = {
        source: Tokens.read(source, tokenizer, samples=samples, length=length, seed=compute.seed, held_out=True)
        for source in sources
    }
    if collapse is None:
        collapse = checkpoint.record.get("verb") in {"prune", "heal"}
    _check_lengths(checkpoint, tokenizer, items, collapse=collapse, length=length if sources else 0)
    if texts or items or collapse or (tasks and tasks.backend != VLLM):
        device = pick_device(compute.device)
        checkpoint.check_room(
            arithmetic(compute.dtype, checkpoint, device), device
        )  # before weights are read for their digest
    asked = Asked(checkpoint, tasks, compute) if tasks else None
    if asked and asked.tasks.backend == VLLM:
        asked.ask_engine()  # first: it wants most of the device's memory
    if not (texts or items or collapse or (asked and asked.missing)):
        return Evaluation(checkpoint.source, {}, tasks=asked.results if asked else {})
    decoder = Decoder.open(checkpoint, replace(compute, stream=False))  # batch after batch, every layer
    if asked:
        asked.ask(decoder, tokenizer, progress)
    return Evaluation(
        checkpoint.source,
        {source: measure(decoder, tokens, progress=progress) for source, tokens in texts.items()},
        run_probes(decoder.model, tokenizer, items, progress=progress),
        check_collapse(decoder.model, tokenizer, progress=progress) if collapse else None,
        asked.results if asked else {},
    )


def _check_lengths(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], *, collapse: bool, length: int
) -> None:
    """Refuse what is longer than the model has positions for, before it is loaded."""
    shorter = f"write {parameter('length', checkpoint.positions)}"
    check_positions(checkpoint, length, parameter("length"), fix=shorter)
    if items:
        asked = probe_tokens(tokenizer, items)
        check_positions(
            checkpoint, asked, parameter("probes"), fix="leave it out", note=", the longest answer included"
        )
    if collapse:
        written = collapse_tokens(tokenizer)
        note = ", what is written included"
        check_positions(
            checkpoint,
            written,
            parameter("collapse_check"),
            fix=f"write {parameter('collapse_check', False)}",
            note=note,
        )


def _check_something(sources: Sequence[str], other: object) -> None:
    """Refuse to measure nothing, or a text without a name."""
    if not all(sources):
        raise InputError(
            parameter("perplexity"),
            expected="a text, or several with commas",
            found="an empty name",
            fix="name one: pydoc",
        )
    if not sources and not other:
        raise InputError(
            parameter("perplexity"),
            expected=f"a text; or none, beside {parameter('tasks')}, {parameter('probes')} "
            f"or {parameter('collapse_check', True)}",
            found="nothing to measure",
            fix=f"write {parameter('perplexity', 'pydoc')}, or add "
            f"{parameter('tasks', 'paper')} or {parameter('probes', True)}",
        )


def compared(evaluation: Evaluation, base: Evaluation, *, seed: int = 0) -> Evaluation:
    """The evaluation beside that of the model it was made from: tasks paired document by document, probes item by item.

    Raises:
        DataError: the two were not measured on the same tasks, documents and items.
    """
    tasks, base_tasks = (
        {name: Outcomes(found.documents, found.outcomes) for name, found in each.tasks.items()}
        for each in (evaluation, base)
    )
    items, base_items = ({name: found.outcomes for name, found in each.probes.items()} for each in (evaluation, base))
    chances = {name: found.chance for name, found in evaluation.tasks.items() if found.chance is not None}
    probe_chances = {name: found.chance for name, found in evaluation.probes.items()}
    collapse = evaluation.collapse
    return replace(
        evaluation,
        collapse=collapse.against(base.collapse) if collapse and base.collapse else collapse,
        base=base,
        against=compare_tasks(tasks, base_tasks, chances=chances, seed=seed),
        probes_against=compare_tasks(items, base_items, chances=probe_chances, seed=seed),
    )
