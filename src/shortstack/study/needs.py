"""What a verb would take on this machine, when it is called alone: `--dry-run`.

The same estimates as a study's, of the step that does the same; nothing is computed or written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.writer import COPY_BYTES_PER_S
from shortstack.data import CalibrationText
from shortstack.data.in_context import IN_CONTEXT
from shortstack.data.mixture import check_sources
from shortstack.data.questions import read_questions, tokenize_questions
from shortstack.data.sources import TEXT, check_source
from shortstack.decoder.likelihoods import passing
from shortstack.decoder.streaming import must_stream
from shortstack.evaluation import Amount, EvaluationText, GenerationChecks, Tasks
from shortstack.evaluation.evaluator import check_room_to_write, looks_for_collapse
from shortstack.machine.device import Compute, pick_device
from shortstack.planning import Choice, Plan
from shortstack.planning.exactness import pruned_config
from shortstack.profiling import Timing
from shortstack.profiling.profiler import too_large
from shortstack.profiling.speed import Load
from shortstack.pruning.verification import PROBE_TOKENS
from shortstack.scoring.block_sizes import wanted_sizes
from shortstack.scoring.metrics import metrics_named
from shortstack.study.kinds import PlanStep, PruneStep, ScoreStep
from shortstack.study.measures import EvaluateOptions, EvaluateStep
from shortstack.study.sizes import DIGEST_BYTES_PER_S, ModelSize, TextSizes
from shortstack.study.step_cost import Cost, added

COMPARED, TIMED = 9, 7  # models that compare() judges, and times, where all its baselines can be had


@dataclass(frozen=True)
class Needs:
    """About what a verb takes.

    seconds: from the start of the program, None where that cannot be known. memory_bytes: held at most, libraries included;
    read_bytes, written_bytes: of weights. streamed: layers are read one by one. unknown: what was not counted, and why.
    """

    seconds: float | None
    memory_bytes: int
    read_bytes: int
    written_bytes: int
    streamed: bool
    unknown: tuple[str, ...] = ()

    def then(self, other: Needs) -> Needs:
        """Of both, one after the other in one process; `other` begins where its libraries are in memory."""
        return Needs(
            added([self.seconds, other.seconds]),
            max(self.memory_bytes, other.memory_bytes),
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.streamed or other.streamed,
            (*self.unknown, *other.unknown),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Begun(NamedTuple):
    """A process whose libraries are imported and whose model is open: seconds until then, and the memory it holds."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class _Alone:
    """What costs ask of a trial, of a verb that is no part of one."""

    model: str
    choice: Choice
    layers: int = 0
    calibration: bool = True

    @property
    def step(self) -> int | None:
        return self.choice.step

    def amount(self, layers: int) -> int:
        return min(self.layers, layers)


class Needing:
    """The needs of verbs on one checkpoint, measured once."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute, begun: Begun) -> None:
        self.checkpoint, self.compute, self.begun, self.texts = checkpoint, compute, begun, TextSizes({})
        self.libraries = psutil.Process().memory_info().rss  # with what this file imports, as a verb that walks has

    @property
    def quantised(self) -> bool:
        """Whether its weights are, so that no layer of it can be read alone and timed."""
        return bool(self.checkpoint.config.get("quantization_config"))

    def loaded(self) -> Needs:
        """Of a verb that loads a quantised model: what can be known."""
        size, unknown = self.checkpoint.weight_bytes, "how fast quantised weights compute"
        return Needs(None, self.libraries + size, size, 0, streamed=False, unknown=(unknown,))

    @cached_property
    def model(self) -> ModelSize:
        compute = self.compute
        return ModelSize.measured(self.checkpoint, dtype=compute.dtype, device=compute.device, stream=compute.stream)

    def score(self, metrics: Sequence[str], text: CalibrationText, sizes: Sequence[int] = ()) -> Needs:
        """sizes: of the blocks that are scored.

        Raises:
            InputError: as score() does.
        """
        if any(metric.needs_text for metric in metrics_named(metrics)):
            check_sources(text.text)
        sizes = wanted_sizes(sizes or None, self.checkpoint.anatomy.layers, metrics_named(metrics))
        step = ScoreStep({"metrics": metrics, "window": sizes or None, **asdict(text)}, {}, {})
        return self._of(step.cost(self._alone(Choice()), self.model, self.texts))

    def plan(self, choice: Choice, text: CalibrationText) -> Needs:
        return self._of(self._planned(choice, text))

    def sweep(self, text: CalibrationText, questions: Path | Tasks | None = None) -> Needs:
        """All depths in one walk, a head behind each layer.

        questions: a file of them, or a standard task, which every depth answers.
        """
        check_sources(text.text)
        if questions is None:
            return self._swept(text)
        depths, amounts = self._swept(text), self._asked(questions)
        seconds = None if amounts is None else sum(self._answered(amount) for amount in amounts)
        return replace(depths, seconds=added([depths.seconds, seconds]), unknown=tuple(self.texts.unknown))

    def _answered(self, amount: Amount) -> float:
        """Seconds in which every depth answers."""
        layers = self.model.layers
        return amount.passed * self.model.passed(layers) + amount.scored * self.model.passed(0, layers)

    def _asked(self, questions: Path | Tasks) -> Sequence[Amount] | None:
        """How much the questions ask; None where their documents are not at hand."""
        if isinstance(questions, Tasks):
            named = {"tasks": questions.names, "data_dir": questions.data_dir}
            return self.texts.tasks(named, self.model, lambda: questions)
        read = tokenize_questions(read_questions(questions), self.checkpoint.tokenizer())
        return [Amount(*passing([choice for question in read for choice in question.choices]))]

    def _swept(self, text: CalibrationText) -> Needs:
        model, layers = self.model, self.model.layers
        windows = self.texts.windows(asdict(text), model)
        if windows is None:
            return self._of(model.walk(None, layers))
        seconds = windows.seconds + windows.tokens * model.passed(layers, layers + 1)
        return self._of(model.walk(seconds, layers, hidden=model.hidden(windows.tokens, 1)))

    def prune(self, choice: Choice, plan: Plan | None, text: CalibrationText, repair_samples: int | None) -> Needs:
        """plan: what is cut, where that is known. repair_samples: windows to repair on; None: no repair.

        Raises:
            ArchitectureError: the cut is known, and no exact one.
        """
        if repair_samples is not None:
            check_sources(text.text)
        known = plan is not None or choice.layers is not None
        chosen = Cost(0.0, 0, 0) if known else self._planned(choice, text)
        cut = plan or choice.sized(self.checkpoint.sizes).like(self.checkpoint.anatomy.layers)
        started = time.perf_counter()
        if known:
            pruned_config(self.checkpoint, cut)
        checked = time.perf_counter() - started
        windows = None if repair_samples is None else {**asdict(text), "samples": repair_samples}
        step = PruneStep({"removed": cut.removed, "repair": windows}, {}, {})
        kept = cut.sized(self.checkpoint.sizes).bytes
        if windows is None and not chosen.memory and kept:
            # bytes move while libraries are imported and the cut is checked
            seconds = max(self.begun.seconds + checked, kept.after / COPY_BYTES_PER_S)
            return Needs(seconds, self.begun.memory, kept.after, kept.after, streamed=False)
        made = step.cost(self._alone(choice, len(cut.removed)), self.model, self.texts)
        return self._of(chosen, made)

    def verify(self, against: Checkpoint | None) -> Needs:
        """Digests of all files; then a few tokens through both models."""
        size, tokens = self.checkpoint.weight_bytes, PROBE_TOKENS[0] * PROBE_TOKENS[1]
        digests = Cost(size / DIGEST_BYTES_PER_S, 0, 0, read=size)
        if against is None:
            return self._of(digests, streamed=False)
        if self.quantised:
            alone = self.loaded()
            return replace(alone, memory_bytes=alone.memory_bytes + size, read_bytes=2 * size + against.weight_bytes)
        models = list(self._compared(against))
        costs = [model.walk(tokens * model.passed(model.layers, 1), model.layers) for model in models]
        return self._of(digests, *costs, streamed=models[0].streamed)

    def _compared(self, against: Checkpoint) -> Iterator[ModelSize]:
        """Both models as verify() computes with them: in fp32 where they fit, and as stored where they are streamed."""
        stream, device = self.compute.stream, pick_device(self.compute.device)
        if stream is None:
            stream = any(must_stream(each, torch.float32, device) for each in (self.checkpoint, against))
        for each in (against, self.checkpoint):
            dtype = "auto" if stream else "float32"
            yield ModelSize.measured(each, dtype=dtype, device=device, stream=stream)

    def evaluate(self, text: EvaluationText, tasks: Tasks, generation: GenerationChecks) -> Needs:
        """
        Raises:
            InputError: the model does not fit in memory, and is to write.
        """
        if generation.probes or looks_for_collapse(self.checkpoint, generation, self.compute):
            check_room_to_write(self.checkpoint, self.compute)
        return self._of(self._evaluated(text, tasks, generation))

    def profile(self, timing: Timing, against: Checkpoint | None) -> Needs:
        """Of both models, which are in memory together and take turns; what does not fit is counted from headers alone."""
        both, device = [self.checkpoint, *([against] if against else [])], pick_device(self.compute.device)
        untimed = too_large(both, self.compute, device) if timing.batch_sizes else ""
        if untimed or not timing.batch_sizes:
            unknown = (f"speeds, which would not be measured: {untimed}",) if untimed else ()
            return Needs(self.begun.seconds, self.begun.memory, 0, 0, streamed=False, unknown=unknown)
        compute, models = self.compute, [self.model]
        if against:
            models.append(ModelSize.measured(against, dtype=compute.dtype, device=compute.device, stream=False))
        loads = [Load(size, timing.prompt, timing.new_tokens) for size in timing.batch_sizes]
        costs = [
            model.walk(sum(_turns(model, load, timing.repeats) for load in loads), model.layers) for model in models
        ]
        memory = sum(cost.memory or 0 for cost in costs)
        return self._of(*costs, Cost(0.0, 0, memory), streamed=False)

    def compare(
        self, text: EvaluationText, tasks: Tasks, timing: Timing, choice: Choice, calibration: CalibrationText
    ) -> Needs:
        """As if each of COMPARED models were the unpruned one, and TIMED of them took turns with it.

        choice: how the layers of the pruned one are chosen, and how many.
        """
        check_sources(calibration.text)
        model = self.model
        judged = self._evaluated(text, tasks, GenerationChecks(collapse_check=True))
        turns = _turns(model, Load(prompt=timing.prompt, new_tokens=timing.new_tokens), timing.repeats)
        chosen = self._planned(choice, calibration)
        seconds = None if judged.seconds is None else COMPARED * judged.seconds + 2 * TIMED * turns
        memory = model.loaded_bytes + (judged.memory or 0)
        return self._of(chosen, Cost(seconds, 0, memory, read=COMPARED * model.bytes_of(model.layers)))

    def _evaluated(self, text: EvaluationText, tasks: Tasks, generation: GenerationChecks) -> Cost:
        for source in text.sources:
            if source not in IN_CONTEXT:
                check_source(source, TEXT)
        options = EvaluateOptions(
            perplexity=text.sources,
            length=text.length,
            samples=text.samples,
            seed=self.compute.seed,
            tasks=tasks.names if tasks.tasks else (),
            limit=tasks.limit,
            num_fewshot=tasks.num_fewshot,
            data_dir=str(tasks.data_dir) if tasks.data_dir else None,
            include=str(tasks.include) if tasks.include else None,
            probe_items=generation.probe_items if generation.probes else 0,
            collapse=generation.collapse_check,
        )
        alone = self._alone(Choice())
        return EvaluateStep(options.arguments, {}, {"checkpoint": alone.model}).cost(alone, self.model, self.texts)

    def _alone(self, choice: Choice, layers: int = 0) -> _Alone:
        return _Alone(self.checkpoint.source, choice, layers)

    def _planned(self, choice: Choice, text: CalibrationText) -> Cost:
        """Scores of the whole model, or shorter ones measured."""
        if choice.measures or (choice.layers is None and choice.by.needs_text):
            check_sources(text.text)
        choice = choice.sized(self.checkpoint.sizes)
        amount = len(choice.like(self.checkpoint.anatomy.layers).removed)
        if not choice.measures:
            if not choice.by.needs_scores:
                return Cost(0.0, 0, 0)
            window = None if choice.by.singles else [amount]
            step = ScoreStep({"metrics": [choice.name], "window": window, **asdict(text)}, {}, {})
            return step.cost(self._alone(choice), self.model, self.texts)
        names = ("metric", "block", "layers", "step", "strategy", "finalists")
        arguments = {name: getattr(choice, name) for name in names} | {"drop": amount}
        return PlanStep({**arguments, **asdict(text)}, {}, {}).cost(self._alone(choice, amount), self.model, self.texts)

    def _of(self, *costs: Cost, streamed: bool | None = None) -> Needs:
        """The needs of what is done one after the other."""
        memory = max((cost.memory or 0 for cost in costs), default=0)
        streamed = self.model.streamed if streamed is None else streamed
        return Needs(
            added([self.begun.seconds, *(cost.seconds for cost in costs)]),
            self.libraries + memory if memory else self.begun.memory,
            sum(cost.read or 0 for cost in costs),
            sum(cost.disk or 0 for cost in costs),
            streamed,
            tuple(self.texts.unknown),
        )


def _turns(model: ModelSize, load: Load, repeats: int) -> float:
    """Seconds in which a model runs once to warm up, and then so many times."""
    prompts, rooms = [load.prompt] * load.batch, [1 + load.new_tokens] * load.batch
    return (1 + repeats) * model.wrote(model.layers, prompts, rooms)
