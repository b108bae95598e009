"""Tasks put to a checkpoint: each result is kept in the cache as soon as it is there."""

from __future__ import annotations

import gc
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import arithmetic
from shortstack.evaluation.options import VLLM, Tasks, load_harness, load_vllm
from shortstack.evaluation.task_results import TaskResult, keep, kept
from shortstack.machine.cache import content_key
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shortstack.evaluation.harness import AnsweringModel, LoadedTask


class TaskRun:
    """Tasks put to one checkpoint: the results that the cache has, and those that are computed, which it then has too."""

    def __init__(self, checkpoint: Checkpoint, tasks: Tasks, compute: Compute) -> None:
        """Read the documents, and what is kept."""
        self.checkpoint, self.tasks, self.loaded = checkpoint, tasks, tasks.load_for(checkpoint)
        device = pick_device(compute.device)
        self.dtype = str(arithmetic(compute.dtype, checkpoint, device))
        self._keys = self._digests(device.partition(":")[0])
        self._kept = {name: result for name, key in self._keys.items() if (result := kept(key))}

    @property
    def missing(self) -> list[LoadedTask]:
        """Tasks that have no result yet."""
        return [loaded for loaded in self.loaded if loaded.name not in self._kept]

    @property
    def writes(self) -> bool:
        """Whether a task that has no result yet asks the model in memory to write."""
        return self.tasks.backend != VLLM and any(loaded.generates for loaded in self.missing)

    @property
    def results(self) -> dict[str, TaskResult]:
        """The results that there are, in the order the tasks were named."""
        return {loaded.name: self._kept[loaded.name] for loaded in self.loaded if loaded.name in self._kept}

    def answer(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> None:
        """Have a model in memory answer what is missing."""
        for loaded in self.missing:
            self._keep(loaded, answer_task(loaded, decoder, tokenizer, self.tasks, progress=progress))

    def answer_with_vllm(self) -> None:
        """Have vLLM answer what is missing; it ends with the last answer."""
        if not self.missing:
            return
        model = load_vllm().VllmModel(
            self.checkpoint,
            dtype=self.dtype.removeprefix("torch."),
            batch_size=self.tasks.batch,
            max_length=self.tasks.max_length,
            seed=self.tasks.seed,
        )
        for loaded in self.missing:
            self._keep(loaded, _judged(loaded, model, self.tasks))
        del model
        gc.collect()  # the engine ends with its last reference, and gives its memory back

    def _digests(self, device: str) -> dict[str, str]:
        """For each task the digest of all that its result depends on."""
        tasks = self.tasks
        beside: dict[str, object] = {
            "model": self.checkpoint.identity,
            "dtype": self.dtype,
            "device": device,
            "options": [tasks.limit, tasks.batch, tasks.max_length, tasks.seed],
            "holds": [field.name for field in fields(TaskResult)],
        }
        if tasks.backend == VLLM:
            beside["engine"] = [VLLM, load_vllm().VERSION]
        return {loaded.name: content_key("task", task=loaded.digest(tasks.limit), **beside) for loaded in self.loaded}

    def _keep(self, loaded: LoadedTask, result: TaskResult) -> None:
        self._kept[loaded.name] = replace(result, digest=self._keys[loaded.name])
        keep(self._kept[loaded.name])


def answer_task(
    loaded: LoadedTask,
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    *,
    progress: Progress = silent,
) -> TaskResult:
    """Evaluate a model in memory on a task, without caching the result."""

    def staged(_: str, done: int, total: int, /, *, note: str = "") -> None:
        progress(f"answering {loaded.name}", done, total, note=note)

    harness_model = load_harness("harness_model")
    model = harness_model.HarnessModel(
        decoder, tokenizer, batch=tasks.batch, max_length=tasks.max_length, progress=staged
    )
    return _judged(loaded, model, tasks)


def _judged(loaded: LoadedTask, model: AnsweringModel, tasks: Tasks) -> TaskResult:
    result: TaskResult = load_harness().run(loaded, model, limit=tasks.limit, seed=tasks.seed)
    return result
