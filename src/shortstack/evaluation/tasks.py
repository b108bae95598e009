"""Tasks put to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shortstack.decoder import Decoder
from shortstack.evaluation.options import Tasks, load_harness
from shortstack.evaluation.task_results import TaskResult
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shortstack.evaluation.harness import LoadedTask


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
