"""Run lm-evaluation-harness tasks and read the results (extra `eval`).

Prompts, metrics and aggregation are the harness's, likelihoods are shortstack's.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.tasks
import numpy as np
from datasets.exceptions import DatasetGenerationError, DatasetsError
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from transformers import set_seed

from shortstack.data.tokens import bos_ids
from shortstack.decoder import Decoder
from shortstack.decoder.likelihoods import Request, likelihoods
from shortstack.errors import DataError, InputError, one_line
from shortstack.evaluation.options import EvalConfig
from shortstack.evaluation.paired import Estimate, mean, mean_of
from shortstack.evaluation.results import TaskResult
from shortstack.evaluation.suites import PERPLEXITIES, TASKS, unknown
from shortstack.evaluation.task_files import write_overlays
from shortstack.machine.hub import hub_or_copies
from shortstack.machine.numbers import ALMOST, is_share
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEEDS = 2**32  # numpy's
SEED = 1234  # the harness's own, of the examples in a prompt; ours is added to it: 0 draws what the harness draws
STOCK = Path(lm_eval.tasks.__file__).parent
GENERATED_TOGETHER = 16  # prompts, where no batch size is named
ROOM = 256  # tokens of an answer, where a task names no other number


@dataclass(frozen=True)
class LoadedTask:
    """A task of the harness: a single one, or a group and its tasks."""

    name: str
    tasks: Mapping[str, Any]
    group: Any | None = None

    @property
    def metric(self) -> str:
        """The metric that counts: the catalogue's where the task has it, else the first that the group or the task names."""
        averaged = (self.group.aggregate_metric_list if self.group else None) or ()
        names = [each.metric for each in averaged] or [str(name) for name in self._first.aggregation()]
        standard = TASKS[self.name].metric if self.name in TASKS else names[0]
        return standard if standard in names else names[0]

    @property
    def version(self) -> str:
        return str(self.group.version if self.group else self._first.VERSION)

    def documents(self, limit: float) -> int:
        """Count the documents within a limit, a number or a share; of a group those of its largest task."""
        every = max(len(task.eval_docs) for task in self.tasks.values())
        return min(every, math.ceil(limit * ALMOST * every) if is_share(limit) else int(limit))

    @property
    def shots(self) -> int:
        """Examples in a prompt."""
        return int(self._first.config.num_fewshot or 0)

    def take(self, shots: int) -> None:
        """Put that number of examples into each prompt."""
        for name, task in self.tasks.items():
            takes = task.OUTPUT_TYPE != "loglikelihood_rolling" and task.config.num_fewshot != 0
            task.set_config(key="num_fewshot", value=shots)
            with hushed():
                available = len(task.fewshot_docs() or ()) if shots and takes else 0
            if available < shots:
                has = f"has {available} examples for its prompts" if takes else "takes no examples"
                raise InputError(f"{name} {has}, not {shots}; give fewer, or other tasks", option="num_fewshot")

    @property
    def macro(self) -> bool:
        """Whether each task of a group counts the same, however many documents it has."""
        listed = (self.group.aggregate_metric_list or []) if self.group else []
        return any(aggregate.metric == self.metric and not aggregate.weight_by_size for aggregate in listed)

    @property
    def generates(self) -> bool:
        """Whether the model writes answers, in place of finding one of several likeliest."""
        return any(task.OUTPUT_TYPE == "generate_until" for task in self.tasks.values())

    def run(
        self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, config: EvalConfig, seed: int, progress: Progress
    ) -> TaskResult:
        """Have a model answer the documents, the first `limit` of each task, and judge the answers."""

        def staged(_: str, done: int, total: int, /, *, note: str = "") -> None:
            progress(f"answering {self.name}", done, total, note=note)

        model, limit = HarnessModel(decoder, tokenizer, batch=config.batch_size, progress=staged), config.limit
        if limit is not None and is_share(limit):
            limit = float(limit) * ALMOST  # which the harness rounds up, too
        set_seed((SEED + seed) % SEEDS)  # of generation that samples
        for task in self.tasks.values():
            task.set_fewshot_seed(seed=(SEED + seed) % SEEDS)
        groups = [self.group, *self.group.get_all_groups()] if self.group else []
        task_dict = {"tasks": dict(self.tasks), "groups": {group.name: group for group in groups}}
        with hushed():
            answered = run_harness(model, task_dict, limit=limit, bootstrap_iters=0, log_samples=True)
        return _result(self, model, answered)

    @property
    def _first(self) -> Any:
        return next(iter(self.tasks.values()))


def load(config: EvalConfig) -> list[LoadedTask]:
    """Load the tasks of the settings with their documents."""
    names, data = config.tasks, config.data_dir
    standard = [name for name in names if name in TASKS]
    local = data is not None and {*standard} == {*names}
    with tempfile.TemporaryDirectory() as folder, hushed(), nullcontext() if local else hub_or_copies():
        write_overlays(standard, data, STOCK, Path(folder))
        paths = [folder, *([str(config.include)] if config.include else [])]
        manager = TaskManager(include_path=paths, include_defaults={*standard} != {*names})
        for name in names:
            if name not in manager.all_tasks:
                raise unknown(name, manager.all_tasks)
        tasks = [task for name in names for task in _loaded(manager, name, data)]
    if config.num_fewshot is not None:
        for task in tasks:
            task.take(config.num_fewshot)
    return tasks


def _loaded(manager: Any, name: str, data: Path | None) -> list[LoadedTask]:
    """Load the task or group; of a tag, or of a group that has no value of its own, each task."""
    try:
        found = manager.load([name])
    except (OSError, ValueError, StopIteration, DatasetsError) as error:  # missing, unreadable, or empty
        raise DataError(f"the data of {name}: {_reason(error)}; {_remedy(name, data)}", option="tasks") from error
    group = found.get("groups", {}).get(name)
    if group is not None and group.has_aggregation:
        return [LoadedTask(name, found["tasks"], group)]
    return [LoadedTask(single, {single: task}) for single, task in found["tasks"].items()]


def _remedy(name: str, data: Path | None) -> str:
    if data and name in TASKS:
        return f"fix {', '.join(sorted(TASKS[name].files.values()))} in {data}"
    return "connect to the hub, or give the documents as files in data_dir (docs/evaluate.md)"


def _reason(error: BaseException) -> str:
    """Return why there are no documents, in the words of datasets or in ours where those are of no use."""
    if isinstance(error, ConnectionError):
        return "no hub within reach, and no copy on this machine"
    if isinstance(error, StopIteration):
        return "a file without documents"
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    return one_line(cause or error) or type(cause or error).__name__


class HarnessModel(HFLM):  # type: ignore[misc]  # lm-eval is untyped here
    """The harness's model, with likelihoods by shortstack; batch: sequences in a forward, None for a choice by tokens."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch: int | None = None,
        progress: Progress = silent,
    ) -> None:
        with hushed():
            super().__init__(
                pretrained=decoder.model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch or GENERATED_TOGETHER,
            )
        self.decoder, self.batch, self.progress = decoder, batch, progress

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)  # the harness's bars would interleave with ours

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Sequence[Any]) -> Any:
        for instance in requests:
            room = int(normalize_gen_kwargs(dict(instance.args[1]), ROOM)["max_gen_toks"])
            if room >= self.max_length:  # no prompt has room beside it
                limit = f"answers of {instance.task_name} may have {room} tokens, and the model has {self.max_length}"
                raise InputError(f"{limit} positions; leave that task out", option="tasks")
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether greedy) of each (text, context, continuation), too long ones cut on the left."""
        cut = [self._request(context, continuation) for _, context, continuation in requests]
        answers = likelihoods(self.decoder, cut, batch=self.batch, progress=self.progress)
        return [(answer.value, answer.greedy) for answer in answers]

    def _request(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        if len(continuation) > self.max_length:
            has = f"an answer has {len(continuation)} tokens, and the model {self.max_length} positions"
            raise InputError(f"{has}; leave that task out", option="tasks")
        ids = (*context, *continuation)[-(self.max_length + 1) :]
        return Request(ids, len(ids) - len(continuation))


def _result(loaded: LoadedTask, model: HarnessModel, answered: Mapping[str, Any]) -> TaskResult:
    results, metric = answered["results"], loaded.metric
    columns = {name.partition(",")[0]: name for name in reversed(results[loaded.name]) if "_stderr" not in name}
    values = {name: results[loaded.name][column] for name, column in columns.items() if "," in column}
    column = columns[metric]
    having = [name for name in loaded.tasks if column in results[name]]  # those that the harness averages
    better = bool(loaded.tasks[having[0]].higher_is_better()[metric])
    by_task = {name: _by_filter(answered["samples"][name], column) for name in having}
    samples = [(name, sample) for name, answers in by_task.items() for sample in answers]
    parts = [_outcomes(metric, [sample[metric] for sample in answers], better) for answers in by_task.values()]
    outcomes = [outcome for part in parts for outcome in part]
    return TaskResult(
        metric=metric,
        value=float(values.pop(metric)),
        stderr=None if metric in PERPLEXITIES else _mean(parts if loaded.macro else [outcomes]).stderr,
        macro=loaded.macro,
        n=len(outcomes),
        version=loaded.version,
        shots=loaded.shots,
        bos=bool(bos_ids(model.tokenizer)),
        dtype=model.decoder.dtype,
        chance=TASKS[loaded.name].chance if loaded.name in TASKS else None,
        higher_is_better=better,
        documents=tuple(f"{name}/{sample['doc_id']}:{sample['doc_hash'][:16]}" for name, sample in samples),
        outcomes=tuple(outcomes),
        also={name: float(value) for name, value in values.items()},
        parts={name: float(results[name][column]) for name in having} if loaded.group else {},
    )


def _mean(parts: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean of the parts' means."""
    return mean([mean_of(np.array(part, dtype=float)) for part in parts])


def _by_filter(samples: Sequence[Mapping[str, Any]], column: str) -> list[Mapping[str, Any]]:
    """Pick the samples of one way to read an answer, in the order of the documents; column: `metric,filter`."""
    wanted = column.partition(",")[2]
    return sorted(
        (sample for sample in samples if sample["filter"] == wanted), key=lambda sample: int(sample["doc_id"])
    )


def _outcomes(metric: str, values: Sequence[Any], better: bool) -> list[float]:
    """Read the documents' numbers, higher being better; of a perplexity log-likelihoods, whose mean is that per unit.

    >>> _outcomes("word_perplexity", [(-20.0, 10), (-300.0, 90)], False)  # 320 nats in 100 words
    [-0.4, -6.0]
    """
    if metric in PERPLEXITIES:
        pairs = [value if isinstance(value, tuple | list) else (value, 1) for value in values]
        units = sum(float(unit) for _, unit in pairs) / len(pairs)
        return [float(nats) / units for nats, _ in pairs]
    return [_outcome(value, better) for value in values]


def _outcome(value: Any, better: bool) -> float:
    """Read a document's number, higher being better. NaN: it has none."""
    if not isinstance(value, Real | np.bool_):
        return math.nan
    return float(value) if better else -float(value)


@contextmanager
def hushed() -> Iterator[None]:
    """Silence the harness's bars and advice, which would interleave with ours."""
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
