"""evaluate(): what a checkpoint is worth: perplexity on text, and tasks, beside the model it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import transformers

from shortstack.checkpoint import Checkpoint
from shortstack.collapse import Collapse, check_collapse
from shortstack.devices import arithmetic, pick_device
from shortstack.errors import InputError
from shortstack.evaluation.perplexity import Perplexity, measure
from shortstack.evaluation.results import Amount, TaskResult, digest, keep, kept, model_digest
from shortstack.pairs import Outcomes, Paired, compare_tasks
from shortstack.probes import Probed, probes, run_probes
from shortstack.progress import Progress, silent
from shortstack.suites import SHARES, named
from shortstack.tokens import Tokens
from shortstack.walk import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shortstack.evaluation.harness import Loaded


@dataclass(frozen=True)
class Tasks:
    """What to ask, and how.

    names: tasks or suites, as a sequence or with commas. limit: documents of each task (of a group: of each of its tasks).
    data: a folder that standard tasks read from; include: a folder of lm-eval task files. batch: sequences in a forward.
    max_length: tokens of a prompt and its answer; None is what the model has positions for. seed: of examples in prompts.
    """

    names: Sequence[str] | str
    limit: int | None = None
    data: str | Path | None = None
    include: str | Path | None = None
    batch: int | None = None
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        named(self.names)
        for option, value in (("--limit", self.limit), ("--batch-size", self.batch), ("--max-length", self.max_length)):
            if value is not None and value < 1:
                raise InputError(option, expected="at least 1", found=str(value), fix="leave it out, or name more")
        for option, folder in (("--data-dir", self.data), ("--include", self.include)):
            if folder is not None and not Path(folder).is_dir():
                raise InputError(option, expected="a folder", found=f"none at {folder}", fix="name one that exists")

    def load(self) -> list[Loaded]:
        """The tasks with their documents.

        Raises:
            InputError: a name is unknown, or lm-eval is not installed.
            DataError: the documents of one cannot be had.
        """
        data, include = (Path(folder) if folder else None for folder in (self.data, self.include))
        loaded: list[Loaded] = harness().load(named(self.names), data=data, include=include)
        return loaded

    def only(self) -> Loaded:
        """The one task that is named.

        Raises:
            InputError: there are several, or what load() raises.
        """
        if len(named(self.names)) > 1:
            raise InputError(
                "--task", expected="one task", found=", ".join(named(self.names)), fix="name one at a time"
            )
        return self.load()[0]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one checkpoint; base: of the model it was made from, and against: the tasks of both, paired."""

    model: str
    perplexity: Mapping[str, Perplexity]
    probes: Mapping[str, Probed] = field(default_factory=dict)
    collapse: Collapse | None = None
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    base: Evaluation | None = None
    against: Mapping[str, Paired] = field(default_factory=dict)

    @property
    def average(self) -> float | None:
        """The plain mean over the tasks whose metric is a share (acc, exact_match); None where there is none.

        A group such as mmlu counts once, with the mean over its documents.
        """
        shares = [found.value for found in self.tasks.values() if found.metric in SHARES]
        return math.fsum(shares) / len(shares) if shares else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "perplexity": {name: found.to_dict() for name, found in self.perplexity.items()},
            "probes": {name: found.to_dict() for name, found in self.probes.items()},
            "collapse": self.collapse.to_dict() if self.collapse else None,
            "tasks": {name: found.to_dict() for name, found in self.tasks.items()},
            "average": self.average,
            "base": self.base.to_dict() if self.base else None,
            "against": {name: found.to_dict() for name, found in self.against.items()},
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
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> Evaluation:
    """Perplexity on each text, the tasks, the generation probes, and whether what the model writes has collapsed.

    perplexity: consecutive windows of `length` tokens, all of them, or `samples` drawn by seed; of `pydoc` only the held-out
    part is read; empty for none. probe_items: so many items of each probe, drawn by seed. collapse: whether to check what
    the model writes freely; None: where shortstack cut or healed it. dtype "auto": bf16 where checkpoint and device have it,
    else float32. A task's result is kept in the cache under the digest of all that it depends on.

    >>> evaluate(Checkpoint.open("demo"), tasks=Tasks("piqa", limit=100, data="data")).average  # doctest: +SKIP
    0.69

    Raises:
        DataError: a text cannot be read or is shorter than one window, or a task's documents cannot be had.
        InputError: nothing to measure, an unknown task, or lm-eval is not installed.
    """
    sources = [name.strip() for name in perplexity.split(",")] if isinstance(perplexity, str) else list(perplexity)
    if not all(sources) or not (sources or tasks or probe_items):
        raise InputError("--perplexity", expected="a text, or several with commas", found="none", fix="name one: pydoc")
    items = probes(seed, probe_items) if probe_items else ()
    _, tokenizer = checkpoint.anatomy, checkpoint.tokenizer()  # what is no decoder is said before what it lacks
    texts = {
        source: Tokens.read(source, tokenizer, samples=samples, length=length, seed=seed, held_out=True)
        for source in sources
    }
    if collapse is None:
        collapse = checkpoint.record.get("verb") in {"prune", "heal"}
    asked = tasks.load() if tasks else []
    keys = _keys(checkpoint, asked, tasks, dtype=dtype, device=pick_device(device)) if tasks else {}
    answered = {name: result for name, key in keys.items() if (result := kept(key))}
    missing = [loaded for loaded in asked if loaded.name not in answered]
    if not (texts or items or collapse or missing):
        return Evaluation(checkpoint.source, {}, tasks=answered)
    decoder = Decoder.open(checkpoint, dtype=dtype, device=device, stream=False)  # batch after batch, every layer
    if tasks:
        answered |= _answers(decoder, checkpoint, missing, tasks, keys, progress)
    return Evaluation(
        checkpoint.source,
        {source: measure(decoder, tokens, progress=progress) for source, tokens in texts.items()},
        run_probes(decoder.model, tokenizer, items, progress=progress),
        check_collapse(decoder.model, tokenizer, progress=progress) if collapse else None,
        {loaded.name: answered[loaded.name] for loaded in asked},
    )


def compared(evaluation: Evaluation, base: Evaluation, *, seed: int = 0) -> Evaluation:
    """The evaluation beside that of the model it was made from, paired document by document.

    Raises:
        DataError: the two were not measured on the same tasks and documents.
    """
    ours, theirs = (
        {name: Outcomes(found.documents, found.outcomes) for name, found in each.tasks.items()}
        for each in (evaluation, base)
    )
    chances = {name: found.chance for name, found in evaluation.tasks.items() if found.chance is not None}
    collapse = evaluation.collapse
    return replace(
        evaluation,
        collapse=collapse.against(base.collapse) if collapse and base.collapse else collapse,
        base=base,
        against=compare_tasks(ours, theirs, chances=chances, seed=seed),
    )


def _keys(checkpoint: Checkpoint, asked: Sequence[Loaded], tasks: Tasks, *, dtype: str, device: str) -> dict[str, str]:
    """Of each task, the digest of all that its result depends on."""
    beside = {
        "model": model_digest(checkpoint),
        "dtype": str(arithmetic(dtype, checkpoint, device)),
        "device": device.partition(":")[0],
        "options": [tasks.limit, tasks.batch, tasks.max_length, tasks.seed],
        "versions": [version("shortstack"), harness().VERSION, torch.__version__, transformers.__version__],
    }
    return {loaded.name: digest(task=loaded.digest(tasks.limit), **beside) for loaded in asked}


def _answers(
    decoder: Decoder,
    checkpoint: Checkpoint,
    missing: Sequence[Loaded],
    tasks: Tasks,
    keys: Mapping[str, str],
    progress: Progress,
) -> dict[str, TaskResult]:
    """The results of tasks that are not in the cache yet; each is kept as soon as it is there."""
    found = {}
    for loaded in missing:
        found[loaded.name] = ask(
            loaded, decoder, checkpoint.tokenizer(), tasks, key=keys[loaded.name], progress=progress
        )
        keep(found[loaded.name])
    return found


def ask(
    loaded: Loaded,
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    *,
    key: str = "",
    progress: Progress = silent,
) -> TaskResult:
    """What a model that is in memory gets on a task; nothing is kept. key: the digest that the result is known by."""
    asking = partial(_staged, progress, f"answering {loaded.name}")
    model = harness().Model(decoder, tokenizer, batch=tasks.batch, max_length=tasks.max_length, progress=asking)
    found: TaskResult = harness().run(loaded, model, limit=tasks.limit, seed=tasks.seed, key=key)
    return found


def amounts(tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> list[Amount]:
    """How much each of the tasks asks, from some of its documents; nothing is answered.

    Raises:
        InputError: as Tasks.load().
        DataError: as Tasks.load().
    """
    return [harness().amount(loaded, tokenizer, tasks.limit) for loaded in tasks.load()]


def _staged(progress: Progress, stage: str, _: str, done: int, total: int, /, *, note: str = "") -> None:
    """Progress under another name."""
    progress(stage, done, total, note=note)


def harness() -> ModuleType:
    """The module that runs lm-evaluation-harness.

    Raises:
        InputError: lm-eval is not installed.
    """
    try:
        return import_module("shortstack.evaluation.harness")
    except ModuleNotFoundError as error:
        raise InputError(
            "--tasks", expected="lm-eval, for tasks", found=str(error), fix="pip install 'shortstack[eval]'"
        ) from error
