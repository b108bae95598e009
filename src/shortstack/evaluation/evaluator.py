"""evaluate(): perplexity, tasks and probes of a checkpoint, compared with its base model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shortstack.architecture.anatomy import check_positions
from shortstack.checkpoint import Checkpoint, Model
from shortstack.data import Tokens
from shortstack.data.tokens import same_tokens
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import ShortstackWarning
from shortstack.evaluation.options import EvalConfig, load_harness
from shortstack.evaluation.perplexity import measure
from shortstack.evaluation.probes import Item, probe_tokens, probes, run_probes
from shortstack.evaluation.results import EvalResult
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from shortstack.evaluation.harness import LoadedTask


DEFAULT = EvalConfig()


def evaluate(
    model: Model,
    config: EvalConfig = DEFAULT,
    *,
    base: Model | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> EvalResult:
    """Measure perplexity, tasks and probes of a model, and compare them with its base model.

    The seed of `compute` draws windows of text, items of probes and few-shot examples.

    >>> evaluate("demo", EvalConfig(tasks="piqa", limit=100, data_dir="data")).tasks["piqa"].value  # doctest: +SKIP
    0.69

    Raises:
        DataError: a text cannot be read or is shorter than one window, or a task's documents cannot be had.
        InputError: an unknown task, a library that is not installed, or no memory for the model.
    """
    result, *others = (ready.measure(progress) for ready in prepare(model, config, base=base, compute=compute))
    return result.compare_to(others[0]) if others else result


def prepare(
    model: Model, config: EvalConfig = DEFAULT, *, base: Model | None = None, compute: Compute = AUTO
) -> list[Evaluation]:
    """Read and check everything evaluate() needs of a model and of its base model, before weights are loaded."""
    models = [Checkpoint.of(each) for each in (model, base) if each is not None]
    tokenizers = [checkpoint.tokenizer() for checkpoint in models if checkpoint.anatomy]
    if base is not None and not same_tokens(*tokenizers):
        message = "the two models have different tokenizers: perplexities per token cannot be compared"
        warnings.warn(message, ShortstackWarning, stacklevel=3)
    items = probes(compute.seed, config.probe_items) if config.probes else ()
    texts = [config.read_texts(tokenizer, compute.seed) for tokenizer in tokenizers]
    tasks = load_harness().load(config) if config.tasks else ()
    ready = [Evaluation(each, config, text, items, tasks, compute) for each, text in zip(models, texts, strict=True)]
    for evaluation in ready:
        evaluation.check()
    return ready


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of which everything was read that can be before weights are loaded."""

    checkpoint: Checkpoint
    config: EvalConfig
    texts: Mapping[str, Tokens]
    items: Sequence[Item]
    tasks: Sequence[LoadedTask]
    compute: Compute

    @property
    def writes(self) -> bool:
        """Whether the model writes, for which all its layers are in memory at once."""
        return bool(self.items or any(task.generates for task in self.tasks))

    def check(self) -> None:
        """Refuse more tokens than positions, and a model that is to write and does not fit in memory."""
        check_positions(self.checkpoint, self.config.seq_length if self.texts else 0, "seq_length")
        if self.items:
            needed = probe_tokens(self.checkpoint.tokenizer(), self.items)
            check_positions(self.checkpoint, needed, "probes", fix="leave it out")
        if self.writes and not self.compute.device_map:
            device = pick_device(self.compute.device)
            fix = "free memory, or leave probes and generative tasks out: the rest is measured layer by layer"
            self.checkpoint.check_room(arithmetic(self.compute.dtype, self.checkpoint, device), device, fix=fix)

    def measure(self, progress: Progress = silent) -> EvalResult:
        """Load the model, and measure."""
        tokenizer = self.checkpoint.tokenizer()
        decoder = Decoder.open(self.checkpoint, replace(self.compute, stream=False) if self.writes else self.compute)
        return EvalResult(
            self.checkpoint.source,
            tasks={
                task.name: task.run(decoder, tokenizer, self.config, self.compute.seed, progress) for task in self.tasks
            },
            perplexity={text: measure(decoder, tokens, progress=progress) for text, tokens in self.texts.items()},
            probes=run_probes(decoder, tokenizer, self.items, progress=progress),
        )
