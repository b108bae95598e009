"""Asking tasks: what is asked, who answers, and the results, each kept in the cache as soon as it is there."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import transformers

from shortstack.architecture.positions import check_positions
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import InputError, parameter
from shortstack.evaluation.suites import TASKS, named
from shortstack.evaluation.task_results import Amount, TaskResult, digest, keep, kept, model_digest
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.progress import Progress, silent
from shortstack.machine.yamlfile import check_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shortstack.evaluation.harness import Answering, Loaded


OWN, VLLM = "shortstack", "vllm"
BACKENDS = (OWN, VLLM)


@dataclass(frozen=True)
class Tasks:
    """What to ask, and how.

    names: tasks or suites, as a sequence or with commas. limit: documents of each task (of a group: of each of its tasks).
    data: a folder that standard tasks read from; include: a folder of lm-eval task files. batch: sequences in a forward.
    max_length: tokens of a prompt and its answer; None is what the model has positions for. seed: of examples in prompts.
    backend: who computes the answers, `shortstack` or `vllm`.
    """

    names: Sequence[str] | str
    limit: int | None = None
    data: str | Path | None = None
    include: str | Path | None = None
    batch: int | None = None
    max_length: int | None = None
    seed: int = 0
    backend: str = OWN

    def __post_init__(self) -> None:
        named(self.names)
        for option, value in (
            (parameter("limit"), self.limit),
            (parameter("batch_size"), self.batch),
            (parameter("max_length"), self.max_length),
        ):
            if value is not None and value < 1:
                raise InputError(option, expected="at least 1", found=str(value), fix="leave it out, or name more")
        for option, folder in ((parameter("data_dir"), self.data), (parameter("include"), self.include)):
            if folder is not None and not Path(folder).is_dir():
                raise InputError(option, expected="a folder", found=f"none at {folder}", fix="name one that exists")
        if self.include is not None:
            check_folder(Path(self.include))  # the harness passes over a file that it cannot read
        if self.backend not in BACKENDS:
            raise InputError(
                parameter("backend"),
                expected=" or ".join(BACKENDS),
                found=repr(self.backend),
                fix="leave it out, or name one",
            )

    def check(self, device: str) -> None:
        """Say what is missing to ask tasks on that device, before anything is read or computed.

        Raises:
            InputError: lm-eval or vLLM is not installed, or vLLM computes elsewhere.
        """
        load_harness()
        if self.backend != VLLM:
            return
        engine()
        if device not in ("auto", "cuda"):
            raise InputError(
                parameter("device"),
                expected=f"no {parameter('device')} beside {parameter('backend', 'vllm')}: "
                f"vLLM was built for one kind of device",
                found=device,
                fix="leave it out; CUDA_VISIBLE_DEVICES names the GPU",
            )

    def check_paired(self) -> None:
        """Refuse one document of a task, on which no two models can be compared; a group has one of each of its tasks.

        Raises:
            InputError: it is so.
        """
        single = [name for name in named(self.names) if name in TASKS and not TASKS[name].group]
        if self.limit == 1 and single:
            expected = f"two documents of {single[0]} or more, to compare two models on"
            raise InputError(
                parameter("limit"),
                expected=expected,
                found="1",
                fix=f"write {parameter('limit', 100)}, or leave out {parameter('against')}",
            )

    def load(self) -> list[Loaded]:
        """The tasks with their documents.

        Raises:
            InputError: a name is unknown, or lm-eval is not installed.
            DataError: the documents of one cannot be had.
        """
        data, include = (Path(folder) if folder else None for folder in (self.data, self.include))
        loaded: list[Loaded] = load_harness().load(named(self.names), data=data, include=include)
        return loaded

    def load_for(self, checkpoint: Checkpoint) -> list[Loaded]:
        """The tasks with their documents, where that checkpoint can answer them.

        Raises:
            InputError: as load(); or prompts or answers are longer than what the model has positions for.
            DataError: as load().
        """
        loaded = self.load()
        if self.max_length:
            check_positions(checkpoint, self.max_length, parameter("max_length"), fix="leave it out")
        load_harness().check_answers(loaded, checkpoint, self.max_length)
        return loaded

    def only(self) -> Loaded:
        """The one task that is named.

        Raises:
            InputError: there are several, or what load() raises.
        """
        if len(named(self.names)) > 1:
            raise InputError(
                parameter("task"), expected="one task", found=", ".join(named(self.names)), fix="name one at a time"
            )
        return self.load()[0]


class Asked:
    """Tasks put to one checkpoint: the results that the cache has, and those that are computed, which it then has too."""

    def __init__(self, checkpoint: Checkpoint, tasks: Tasks, compute: Compute) -> None:
        """Read the documents, and what is kept.

        Raises:
            as Tasks.load_for().
        """
        self.checkpoint, self.tasks, self.loaded = checkpoint, tasks, tasks.load_for(checkpoint)
        device = pick_device(compute.device)
        self.dtype = arithmetic(compute.dtype, checkpoint, device)
        self._keys = self._digests(device.partition(":")[0])
        self._found = {name: result for name, key in self._keys.items() if (result := kept(key))}

    @property
    def missing(self) -> list[Loaded]:
        """Tasks that have no result yet."""
        return [loaded for loaded in self.loaded if loaded.name not in self._found]

    @property
    def results(self) -> dict[str, TaskResult]:
        """The results that there are, in the order the tasks were named."""
        return {loaded.name: self._found[loaded.name] for loaded in self.loaded if loaded.name in self._found}

    def ask(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> None:
        """Have a model in memory answer what is missing."""
        for loaded in self.missing:
            key = self._keys[loaded.name]
            self._keep(ask(loaded, decoder, tokenizer, self.tasks, key=key, progress=progress), loaded)

    def ask_engine(self) -> None:
        """Have vLLM answer what is missing; it ends with the last answer.

        Raises:
            InputError: vLLM does not start.
        """
        if not self.missing:
            return
        model = engine().Model(self.checkpoint, self.tasks, dtype=str(self.dtype).removeprefix("torch."))
        for loaded in self.missing:
            self._keep(_run(loaded, model, self.tasks, self._keys[loaded.name]), loaded)
        del model
        gc.collect()  # the engine ends with its last reference, and gives its memory back

    def _digests(self, device: str) -> dict[str, str]:
        """Of each task, the digest of all that its result depends on."""
        tasks = self.tasks
        beside: dict[str, object] = {
            "model": model_digest(self.checkpoint),
            "dtype": str(self.dtype),
            "device": device,
            "options": [tasks.limit, tasks.batch, tasks.max_length, tasks.seed],
            "versions": [version("shortstack"), load_harness().VERSION, torch.__version__, transformers.__version__],
        }
        if tasks.backend == VLLM:
            beside["engine"] = [VLLM, engine().VERSION]
        return {loaded.name: digest(task=loaded.digest(tasks.limit), **beside) for loaded in self.loaded}

    def _keep(self, result: TaskResult, loaded: Loaded) -> None:
        keep(result)
        self._found[loaded.name] = result


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
    model = load_harness().Model(decoder, tokenizer, batch=tasks.batch, max_length=tasks.max_length, progress=asking)
    return _run(loaded, model, tasks, key)


def _run(loaded: Loaded, model: Answering, tasks: Tasks, key: str) -> TaskResult:
    found: TaskResult = load_harness().run(loaded, model, limit=tasks.limit, seed=tasks.seed, key=key)
    return found


def amounts(tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> list[Amount]:
    """How much each of the tasks asks, from some of its documents; nothing is answered.

    Raises:
        InputError: as Tasks.load().
        DataError: as Tasks.load().
    """
    loaded = tasks.load()
    from shortstack.evaluation.task_amount import amount_of

    return [amount_of(each, tokenizer, tasks.limit) for each in loaded]


def _staged(progress: Progress, stage: str, _: str, done: int, total: int, /, *, note: str = "") -> None:
    """Progress under another name."""
    progress(stage, done, total, note=note)


def load_harness() -> ModuleType:
    """The module that runs lm-evaluation-harness.

    Raises:
        InputError: lm-eval is not installed.
    """
    try:
        return import_module("shortstack.evaluation.harness")
    except ModuleNotFoundError as error:
        raise InputError(
            parameter("tasks"), expected="lm-eval, for tasks", found=str(error), fix="pip install 'shortstack[eval]'"
        ) from error


def engine() -> ModuleType:
    """The module that runs vLLM.

    Raises:
        InputError: vLLM is not installed, or does not fit what is.
    """
    try:
        return import_module("shortstack.evaluation.vllm")
    except ImportError as error:
        raise InputError(
            parameter("backend", "vllm"),
            expected="vLLM, which brings a torch of its own",
            found=str(error),
            fix=f"install shortstack beside vLLM (its page says how), or leave {parameter('backend')} out",
        ) from error
