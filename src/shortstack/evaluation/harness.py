"""lm-evaluation-harness (extra `eval`): tasks are loaded, asked of a model, and what it got is read.

Prompts, metrics and aggregation are the harness's. A model of ours that it asks is in `harness_model`.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib.metadata import version
from itertools import groupby, islice
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import datasets
import lm_eval.tasks
import numpy as np
from datasets.exceptions import DatasetGenerationError, DatasetsError
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from lm_eval.tasks import TaskManager
from transformers import set_seed

from shortstack.checkpoint import Checkpoint
from shortstack.data.questions import TokenizedQuestion, request
from shortstack.data.tokens import bos_ids
from shortstack.errors import DataError, InputError
from shortstack.evaluation.paired import mean_stderr
from shortstack.evaluation.suites import PERPLEXITIES, TASKS, unknown
from shortstack.evaluation.task_files import write_overlays
from shortstack.evaluation.task_results import TaskResult, digest
from shortstack.machine.files import file_digest
from shortstack.machine.hub import hub_or_copies
from shortstack.machine.numbers import ALMOST, is_share, part_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where installed libraries lie, whose versions are noted otherwise.
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def files_of(task: Any) -> set[Path]:
    """The files of the task's class and functions, those beside them, and those of modules that they import."""
    files: set[Path] = set()
    for each in (type(task), *_functions(task.config)):
        _add(_home(each), files)
    return files | {beside for path in files for beside in path.parent.glob("*.py")}


def _functions(value: Any) -> Iterator[Any]:
    """The functions and classes inside a config."""
    if isinstance(value, partial):
        yield value.func
    elif callable(value):
        yield value
    elif is_dataclass(value):
        yield from (inside for field in fields(value) for inside in _functions(getattr(value, field.name, None)))
    elif isinstance(value, Mapping):
        yield from (inside for item in value.values() for inside in _functions(item))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from (inside for item in value for inside in _functions(item))


def _add(module: ModuleType | None, files: set[Path]) -> None:
    """Add a module's file, and those of the modules that it took something from, unless they are installed."""
    place = getattr(module, "__file__", None)
    if not module or not place:
        return
    path = Path(place).resolve()
    if path in files or path.suffix != ".py" or any(path.is_relative_to(folder) for folder in INSTALLED):
        return
    files.add(path)
    for value in [*vars(module).values()]:
        _add(value if isinstance(value, ModuleType) else _home(value), files)


def _home(value: Any) -> ModuleType | None:
    """The module that a function or class is from."""
    name = getattr(value, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None


VERSION = version("lm-eval")
SEED = 1234  # the harness's own, of the examples in a prompt; ours is added to it: 0 draws what the harness draws
GENERATED_TOGETHER = 16  # prompts, where no batch size is named
ROOM = 256  # tokens of an answer, where a task names no other number
PLACES = {"dataset_path", "dataset_name", "dataset_kwargs", "tag"}  # of a task's config: where its documents lie
STOCK = Path(lm_eval.tasks.__file__).parent


@dataclass(frozen=True)
class LoadedTask:
    """A task of the harness: a single one, or a group and its tasks."""

    name: str
    tasks: Mapping[str, Any]
    group: Any | None = None

    @property
    def metric(self) -> str:
        """The metric that counts: the catalogue's where the task has it, else the first that the task names."""
        names = [str(name) for name in self._first.aggregation()]
        standard = TASKS[self.name].metric if self.name in TASKS else names[0]
        return standard if standard in names else names[0]

    @property
    def version(self) -> str:
        return str(self.group.version if self.group else self._first.VERSION)

    @property
    def shots(self) -> int:
        """Examples in a prompt."""
        return int(self._first.config.num_fewshot or 0)

    def take(self, shots: int) -> None:
        """Put so many examples into each prompt."""
        for name, task in self.tasks.items():
            takes = task.OUTPUT_TYPE != "loglikelihood_rolling" and task.config.num_fewshot != 0
            task.set_config(key="num_fewshot", value=shots)
            with hushed():
                drawn_from = len(task.fewshot_docs() or ()) if shots and takes else 0
            if drawn_from < shots:
                found = f"{name}, which {f'has {drawn_from} documents for them' if takes else 'takes none'}"
                expected = f"tasks with {shots} examples for their prompts"
                raise InputError(found, expected=expected, fix="ask for fewer, or other tasks", option="num_fewshot")

    @property
    def aggregation(self) -> Any:
        """How a group makes one number of its tasks'; None of a single task."""
        return self.group.to_dict() if self.group else None

    @property
    def macro(self) -> bool:
        """Whether each task of a group counts the same, however many documents it has."""
        listed = (self.group.aggregate_metric_list or []) if self.group else []
        return any(each.metric == self.metric and not each.weight_by_size for each in listed)

    @property
    def generates(self) -> bool:
        """Whether the model writes answers, in place of finding one of several likeliest."""
        return any(task.OUTPUT_TYPE == "generate_until" for task in self.tasks.values())

    @property
    def _first(self) -> Any:
        return next(iter(self.tasks.values()))

    def digest(self, limit: float | None) -> str:
        """The digest of all that is asked: each task's config, its documents, and those that examples are drawn from."""
        with hushed():
            examples = {name: _digests(task.fewshot_docs()) for name, task in self.tasks.items() if self.shots}
        return digest(
            name=self.name,
            version=self.version,
            aggregation=json.loads(json.dumps(self.aggregation, default=_named)),
            configs={name: _config(task) for name, task in self.tasks.items()},
            **_code_of(self.tasks),
            documents={
                name: _digests(islice(task.eval_docs, asked_of(task, limit))) for name, task in self.tasks.items()
            },
            examples=examples,
        )


def asked_of(task: Any, limit: float | None) -> int:
    """How many of a task's documents are asked."""
    return part_of(limit, len(task.eval_docs))


def load(
    names: Sequence[str], *, data: Path | None = None, include: Path | None = None, shots: int | None = None
) -> list[LoadedTask]:
    """The named tasks with their documents. data: a folder that standard tasks read from; include: the user's task files.

    shots: examples in each prompt, where a task does not say that it takes none.
    """
    standard = [name for name in names if name in TASKS]
    local = data is not None and set(standard) == set(names)
    with tempfile.TemporaryDirectory() as folder, hushed(), nullcontext() if local else hub_or_copies():
        write_overlays(standard, data, STOCK, Path(folder))
        paths = [folder, *([str(include)] if include else [])]
        manager = TaskManager(include_path=paths, include_defaults=set(standard) != set(names))
        for name in names:
            if name not in manager.all_tasks:
                raise unknown(name, manager.all_tasks)
        loaded_tasks = [loaded for name in names for loaded in _loaded(manager, name, data)]
    if shots is not None:
        for loaded in loaded_tasks:
            loaded.take(shots)
    return loaded_tasks


def _loaded(manager: Any, name: str, data: Path | None) -> list[LoadedTask]:
    """The task or group; of a tag, or of a group that has no value of its own, each task."""
    try:
        there = manager.load([name])
    except (OSError, ValueError, StopIteration, DatasetsError) as error:  # not there, not to be read, or empty
        elsewhere = "its documents, and code that it asks the hub for, here or on the hub"
        expected = f"files in {data}" if data and name in TASKS else elsewhere
        raise DataError(
            _reason(error), expected=expected, fix=_remedy(name, data), where=f"the data of {name}"
        ) from error
    group = there.get("groups", {}).get(name)
    if group is not None and group.has_aggregation:
        return [LoadedTask(name, there["tasks"], group)]
    return [LoadedTask(single, {single: task}) for single, task in there["tasks"].items()]


def _remedy(name: str, data: Path | None) -> str:
    """Suggest how to provide the documents of a task."""
    own = "include with a task of yours"
    if data is None:
        return f"give data_dir with the files that the page of evaluate lists, or {own}"
    if name in TASKS:
        return f"mend {', '.join(sorted(TASKS[name].files.values()))}: the page of evaluate says how each is laid out"
    return f"data_dir serves the tasks of `shortstack ls tasks` alone; for another give {own}"


def check_answers(loaded: Sequence[LoadedTask], checkpoint: Checkpoint, max_length: int | None = None) -> None:
    """Refuse tasks whose answers alone may be as long as a prompt with its answer."""
    tasks = ((each.name, task) for each in loaded for task in each.tasks.values())
    generating = {name: task for name, task in tasks if task.OUTPUT_TYPE == "generate_until"}
    if not generating:
        return
    config = checkpoint.blueprint.config
    longest = max_length or resolve_max_length(config, checkpoint.tokenizer(), default=HFLM._DEFAULT_MAX_LENGTH)
    for name, task in generating.items():
        check_answer(name, task.config.generation_kwargs or {}, longest)


def check_answer(name: str, settings: Mapping[str, Any], longest: int) -> None:
    room = int(normalize_gen_kwargs(dict(settings), ROOM)["max_gen_toks"])
    if room >= longest:
        raise InputError(
            f"{longest}; where it is not named it is what the model has positions for",
            expected=f"more than the {room} tokens that an answer of {name} may have",
            fix=f"leave {name} out, or raise max_length to {2 * room} where the model computes its positions",
            option="max_length",
        )


class AnsweringModel(Protocol):
    """The attributes that run() needs beside a harness model's methods: tokenizer and compute dtype."""

    tokenizer: PreTrainedTokenizerBase
    computed_in: str


def _reason(error: BaseException) -> str:
    """Return the reason why documents cannot be had, in the words of datasets or in ours where those are of no use."""
    if isinstance(error, ConnectionError):
        return "no hub within reach, and no copy on this machine"
    if isinstance(error, StopIteration):
        return "a file without documents"
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    return " ".join(str(cause or error).split())[:200] or type(cause or error).__name__


def run(loaded: LoadedTask, model: AnsweringModel, *, limit: float | None = None, seed: int = 0) -> TaskResult:
    """Have a model answer a task's documents, the first `limit` of each of its tasks, and judge the answers."""
    if limit is not None and is_share(limit):
        limit = float(limit) * ALMOST  # which the harness rounds up, too
    set_seed(SEED + seed)  # of generation that samples
    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed=SEED + seed)
    groups = [loaded.group, *loaded.group.get_all_groups()] if loaded.group else []
    task_dict = {"tasks": dict(loaded.tasks), "groups": {group.name: group for group in groups}}
    with hushed():
        answered = run_harness(model, task_dict, limit=limit, bootstrap_iters=0, log_samples=True)
    return _result(loaded, model, answered)


def _result(loaded: LoadedTask, model: AnsweringModel, answered: Mapping[str, Any]) -> TaskResult:
    """Extract the task's result from those of the harness, with the outcome of every document."""
    results, metric = answered["results"], loaded.metric
    columns = {name.partition(",")[0]: name for name in reversed(results[loaded.name]) if "_stderr" not in name}
    values = {name: results[loaded.name][column] for name, column in columns.items() if "," in column}
    column = columns[metric]
    better = bool(loaded._first.higher_is_better()[metric])
    by_task = {name: _by_filter(answered["samples"][name], column) for name in loaded.tasks}
    samples = [(name, sample) for name, some in by_task.items() for sample in some]
    parts = [[_outcome(metric, sample[metric], better) for sample in some] for some in by_task.values()]
    outcomes = [outcome for part in parts for outcome in part]
    return TaskResult(
        metric=metric,
        value=float(values.pop(metric)),
        stderr=math.nan if metric in PERPLEXITIES else _standard_error(parts if loaded.macro else [outcomes]),
        macro=loaded.macro,
        n=len(outcomes),
        version=loaded.version,
        shots=loaded.shots,
        bos=bool(bos_ids(model.tokenizer)),
        dtype=model.computed_in,
        chance=TASKS[loaded.name].chance if loaded.name in TASKS else None,
        higher_is_better=better,
        documents=tuple(f"{name}/{sample['doc_id']}:{sample['doc_hash'][:16]}" for name, sample in samples),
        outcomes=tuple(outcomes),
        also={name: float(value) for name, value in values.items()},
        parts={name: float(results[name][column]) for name in loaded.tasks} if loaded.group else {},
    )


def _standard_error(parts: Sequence[Sequence[float]]) -> float:
    """Of the mean of the parts' means; NaN where a part has fewer than two outcomes.

    >>> round(_standard_error([[0, 1, 1, 0]]), 4), round(_standard_error([[0, 1, 1, 0], [1, 1]]), 4)
    (0.2887, 0.1718)
    """
    if any(len(part) < 2 for part in parts):
        return math.nan
    return math.hypot(*(mean_stderr(np.array(part)) for part in parts)) / len(parts)


def _by_filter(samples: Sequence[Mapping[str, Any]], column: str) -> list[Mapping[str, Any]]:
    """The samples of one way to read an answer, in the order of the documents; column: `metric,filter`."""
    wanted = column.partition(",")[2]
    return sorted(
        (sample for sample in samples if sample["filter"] == wanted), key=lambda sample: int(sample["doc_id"])
    )


def _outcome(metric: str, value: Any, better: bool) -> float:
    """A document's number, higher being better; of a perplexity the log-likelihood per unit. NaN where it has none alone."""
    if metric in PERPLEXITIES:
        return float(value[0]) / float(value[1]) if isinstance(value, tuple | list) else float(value)
    if not isinstance(value, Real | np.bool_):
        return math.nan
    return float(value) if better else -float(value)


def questions(
    loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, limit: float | None = None
) -> list[TokenizedQuestion]:
    """A multiple-choice task's documents as questions, for the walk that answers them for many cuts at once."""
    if loaded.metric != "acc" or any(task.OUTPUT_TYPE != "multiple_choice" for task in loaded.tasks.values()):
        raise InputError(
            loaded.name, expected="a multiple-choice task", fix="name one, such as piqa or arc_easy", option="task"
        )
    with hushed():
        return [each for task in loaded.tasks.values() for each in _questions(task, tokenizer, limit)]


def _questions(task: Any, tokenizer: PreTrainedTokenizerBase, limit: float | None) -> Iterator[TokenizedQuestion]:
    task.build_all_requests(limit=asked_of(task, limit))
    for _, group in groupby(task.instances, key=lambda instance: instance.doc_id):
        choices = sorted(group, key=lambda instance: int(instance.idx))
        yield TokenizedQuestion(tuple(request(tokenizer, *choice.args) for choice in choices), _right(task, choices))


def _right(task: Any, choices: Sequence[Any]) -> int:
    """The choice that the task calls right when the model finds it likeliest; -1 where it calls none so."""
    for place in range(len(choices)):
        likelihoods = [(float(other == place), False) for other in range(len(choices))]
        if task.process_results(choices[0].doc, likelihoods)["acc"]:
            return place
    return -1


def _config(task: Any) -> Any:
    """A task's config without where its files lie."""
    fields = {name: value for name, value in task.dump_config().items() if name not in PLACES}
    fields["metadata"] = {
        name: value for name, value in (fields.get("metadata") or {}).items() if name != "config_source"
    }
    return json.loads(json.dumps(fields, default=_named))


def _named(value: object) -> str:
    """An object as it is called in every process: a function's repr says where in memory it lies."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _code_of(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The user's own Python behind tasks, as digests under `code`; nothing of the harness's own tasks."""
    digests = {file_digest(path) for task in tasks.values() for path in files_of(task)}
    return {"code": sorted(digests)} if digests else {}


def _digests(documents: Any) -> str:
    """One digest of documents, order included."""
    return digest(documents=[json.dumps(document, sort_keys=True, default=_named) for document in documents or ()])


@contextmanager
def hushed() -> Iterator[None]:
    """The harness's bars and advice would interleave with ours; errors are raised all the same."""
    logger, tqdm = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    before, bars = logger.level, datasets.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        logger.setLevel(before)
        lm_eval.api.task.tqdm = tqdm
        if bars:
            datasets.enable_progress_bars()
