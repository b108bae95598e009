"""The kinds of steps: those that make something here, those that measure it in `measures`. A kind is one class: its inputs,
its call, the command that does the same, and its cost.

A new kind is a class here, its name in KINDS, and its place in a trial's path in `graph`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack import healing, planning, pruning, repairing, scoring
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers
from shortstack.data import CalibrationText, Tokens
from shortstack.data.splits import HELD_OUT, JUDGING
from shortstack.healing.options import option_defaults, task_of
from shortstack.machine.device import Compute
from shortstack.machine.files import scratch_beside
from shortstack.machine.formats import show_layers
from shortstack.machine.progress import Progress
from shortstack.planning import Choice, Plan
from shortstack.planning.layer_sets import repairs_of, splits
from shortstack.planning.plans import BLOCKS
from shortstack.scoring import Scores
from shortstack.scoring.block_sizes import block_sizes
from shortstack.scoring.metrics import metric_named
from shortstack.study.measures import EvaluateStep, ProfileStep
from shortstack.study.step_cost import Cost, Costed, added
from shortstack.study.steps import Contents, Job, Known, Places, Step
from shortstack.study.trial import RepairText, Trial, calibration_text
from shortstack.study.words import changed_words, defaults_of, model_words, option_words

if TYPE_CHECKING:
    from shortstack.healing import HealingTask
    from shortstack.repairing import Repair
    from shortstack.study.sizes import ModelSize, TextSizes

# Measured on SmolLM2 and on a model of the shape of Qwen2.5-0.5B (AMD EPYC, bf16, 2026-11-27), on 1,536 and 6,144 tokens:
# beside its fits a repair takes as long as 2.6 to 3.8 walks through all layers, and its fits as long as .4 to .8 of the
# widest matrix in each layer. The blocks of repaired-blocks took 14, 29 and 53 s beside fits; by _blocks_cost 16, 45, 63.
REPAIR_WALKS = 3.3
FITTED = 0.7  # of the layers
HEALING_READS = 3  # of what heals: for its digest, by the walk and the training, and as it is copied
TEACHER_READS = 2  # of a teacher: for its digest, and by the walk
REPAIRED_STREAMS = 3  # the whole model's, the shortened one's, and that as it was


class ScoreStep(Step):
    """score()."""

    kind = "score"

    @classmethod
    def of(cls, known: Known, trial: Trial, metrics: Sequence[str], window: int | str | None) -> ScoreStep:
        """metrics: every one that this walk feeds. window: layers of the blocks that are scored; None: single layers."""
        arguments = {"metrics": metrics, "window": window, **trial.calibration_arguments, "dtype": known.dtype}
        text = {"text": known.texts[trial.calibration.text]} if trial.calibration else {}
        return cls(arguments, {"model": known.model(trial), **text}, {"model": trial.model})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the blocks that are scored, where they are known."""
        window = self.arguments.get("window")
        return () if isinstance(window, str) else block_sizes(window)

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint = job.open("model", progress)
        scores = scoring.score(
            checkpoint,
            _windows(job, checkpoint, self.arguments, progress) if self.arguments["text"] else None,
            metrics=self.arguments["metrics"],
            window=self.arguments["window"],
            compute=job.compute(self.arguments),
            progress=progress,
        )
        return job.saved("scores.json", scores.to_dict())

    def words(self, places: Places) -> list[str]:
        metrics = option_words({"metric": self.arguments["metrics"], "window": self.arguments["window"]})
        other = changed_words(self.arguments, defaults_of(CalibrationText, Compute))
        return ["score", *model_words(places["model"]), *metrics, *other, "-o", "scores.json"]

    def cost(self, trial: Costed, model: ModelSize, texts: TextSizes) -> Cost:
        """Without each layer and block once, for metrics of losses; a backward pass takes twice a forward one."""
        feeds = {metric_named(name).feed for name in self.arguments["metrics"]}
        passes = 2 if "gradient" in feeds else 1
        if not trial.calibration:
            return model.walk(0.0, model.layers, passes=passes)
        text, fits = texts.windows(self.arguments, model), 0.0
        layers, heads, streams = self._passed(feeds, model.layers)
        if "repair" in feeds:
            fits = model.layers * model.fitted(text.tokens if text else 0, self._several)
        walk = text and text.seconds + text.tokens * model.passed(layers, heads) + fits
        hidden = model.hidden(text.tokens if text else 0, int(streams))
        return model.walk(walk, model.layers, passes=passes, hidden=hidden)

    @property
    def _several(self) -> int:
        """How many sizes there are; where nobody knows yet, one."""
        return len(self.sizes) or 1

    def _passed(self, feeds: Set[str], depth: int) -> tuple[float, float, float]:
        """Layers and heads that the text passes, and how often its hidden states are held at once."""
        layers, heads, streams = 0.0, 0.0, 1.0
        if feeds & {"loss", "kl"}:
            layers, heads = _without_each(depth, self.sizes)
            streams = heads
        elif "hidden" in feeds:
            layers = depth
        if "gradient" in feeds:
            layers, heads, streams = layers + 3 * depth, heads + 3, streams + depth
        if "repair" in feeds:
            routes = self._several * depth
            layers, heads = layers + 2 * depth + routes * depth / 2 / HELD_OUT, heads + routes / HELD_OUT
            streams = max(streams, 2 + max(self.sizes, default=1) + routes / HELD_OUT)
        return layers, heads, streams


def _without_each(layers: int, sizes: Sequence[int]) -> tuple[float, int]:
    """Layers and heads that a text passes in the whole model, and without each layer and each block of these sizes.

    What stands before a block is passed once for all.
    """
    left = [layers - size for size in {1, *sizes}]
    return layers + sum(rest * (rest + 1) / 2 for rest in left), 1 + sum(rest + 1 for rest in left)


class PlanStep(Step):
    """choose()."""

    kind = "plan"

    @classmethod
    def of(cls, known: Known, trial: Trial, score: ScoreStep | None, values: str | None) -> PlanStep:
        """values: the digest of the scores by the trial's metric, where there are some."""
        choice = trial.choice
        arguments: dict[str, Any] = {
            "metric": choice.metric,
            "block": trial.removes_window,
            "layers": choice.layers,
            "drop": choice.drop,
            "step": choice.step,
            "strategy": choice.strategy,
            "finalists": choice.finalists,
        }
        inputs: dict[str, Any] = {"model": known.model(trial)}
        if score:
            return cls(arguments, inputs | {"values": values}, {"model": trial.model, "score": score.key})
        arguments |= trial.calibration_arguments
        if trial.calibration:
            arguments["dtype"], inputs["text"] = known.dtype, known.texts[trial.calibration.text]
        return cls(arguments, inputs, {"model": trial.model})

    @property
    def choice(self) -> Choice:
        names = ("metric", "block", "layers", "drop", "step", "strategy", "finalists")
        search = all(self.arguments[name] is None for name in ("metric", "layers", "strategy"))
        return Choice(**{name: self.arguments[name] for name in names}, search=search)

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint = job.open("model", progress)
        source: Scores | Tokens | None = None
        if "score" in job.given:
            source = Scores.from_dict(job.given["score"], where="score")
        elif self.arguments["text"]:
            source = _windows(job, checkpoint, self.arguments, progress)
        compute = job.compute(self.arguments)
        chosen = planning.choose(checkpoint, self.choice, source, compute=compute, progress=progress)
        return job.saved("plan.json", chosen.plan.sized(checkpoint.sizes).to_dict())

    def words(self, places: Places) -> list[str]:
        source = [f"{places['score']}/scores.json"] if "score" in places else model_words(places["model"])
        arguments = {**self.arguments, "search": self.choice.search}
        options = changed_words(arguments, defaults_of(Choice, CalibrationText, Compute))
        return ["plan", *source, *options, "-o", "plan.json"]

    def cost(self, trial: Costed, model: ModelSize, texts: TextSizes) -> Cost:
        from shortstack.planning.measured import Budget

        if not trial.choice.measures:
            return Cost(model.pace.opening, 0, 0)
        if trial.choice.how.name == BLOCKS:
            return self._blocks_cost(trial.amount(model.layers), model, texts)
        layers = model.layers * (model.layers + 1) / 2
        walks = trial.amount(model.layers) / (trial.step or 1)
        if not trial.choice.how.by_metric:
            sets = Budget().generations * Budget().offspring
            layers, walks = layers + sets * model.layers, 1
        text = texts.windows(self.arguments, model)
        walk = text and text.seconds + text.tokens * walks * model.passed(layers, layers / model.layers)
        hidden = model.hidden(text.tokens if text else 0, model.layers + 1)
        return model.walk(walk, model.layers, passes=walks, hidden=hidden)

    def _blocks_cost(self, amount: int, model: ModelSize, texts: TextSizes) -> Cost:
        """All blocks of some sizes in one walk, each from there to the top on the held-out samples; then whole repairs."""
        layers, repairs = model.layers, repairs_of(self.choice.finalists)
        sizes = len({amount, *itertools.chain(*splits(amount))})
        text, routes = texts.windows(self.arguments, model), sizes * layers
        if text is None:
            return Cost(None, 0, model.loaded_bytes)
        walked = (1 + repairs * REPAIR_WALKS) * layers + routes * layers / 2 / HELD_OUT
        fits = model.fitted(text.tokens, sizes) + repairs * FITTED * model.fitted(text.tokens)
        walk = text.seconds + text.tokens * model.passed(walked, routes / HELD_OUT)
        return model.walk(walk + layers * fits, layers, passes=2 + repairs)


class PruneStep(Step):
    """prune(), after repair() where the trial wants it."""

    kind = "prune"
    writes_weights = True

    @classmethod
    def of(cls, known: Known, trial: Trial, removed: Any) -> PruneStep:
        arguments: dict[str, Any] = {"removed": removed, "repair": None}
        inputs: dict[str, Any] = {"model": known.model(trial)}
        if trial.repair:
            arguments["repair"] = {**trial.repair.model_dump(), "seed": trial.seed, "dtype": known.dtype}
            inputs["text"] = known.texts[trial.repair.text]
        return cls(arguments, inputs, {"model": trial.model})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint, removed = job.open("model", progress), tuple(self.arguments["removed"])
        plan = Plan(checkpoint.anatomy.layers, removed, "layers").sized(checkpoint.sizes)
        with scratch_beside(job.output) as scratch:
            repair = self._repair(job, checkpoint, scratch, progress) if self.arguments["repair"] else None
            pruned = pruning.prune(checkpoint, plan, job.output, repair=repair, progress=progress)
        return {**plan.to_dict(), "repair": repair.to_dict() if repair else None, **Contents.of(pruned).result}

    def _repair(self, job: Job, checkpoint: Checkpoint, scratch: Path, progress: Progress) -> Repair:
        from shortstack.decoder import calibration_tokens

        removed, options = frozenset(self.arguments["removed"]), self.arguments["repair"]
        text = calibration_text(options).of_all(options["samples"])
        compute = job.compute(options)
        tokens = calibration_tokens(checkpoint, text, at_least=JUDGING, compute=compute, progress=progress)
        return repairing.repair(checkpoint, removed, tokens, compute=compute, scratch=scratch, progress=progress)

    def words(self, places: Places) -> list[str]:
        options: dict[str, Any] = {"layers": show_layers(self.arguments["removed"]).replace(" ", "")}
        defaults: dict[str, Any] = {"layers": None, "repair": False, "repair_samples": RepairText().samples}
        if self.arguments["repair"]:
            repair = dict(self.arguments["repair"])
            options |= {"repair": True, "repair_samples": repair.pop("samples"), **repair}
        changed = changed_words(options, {**defaults, **defaults_of(CalibrationText, Compute)})
        return ["prune", *model_words(places["model"]), *changed, "-o", "pruned"]

    def cost(self, trial: Costed, model: ModelSize, texts: TextSizes) -> Cost:
        kept, repair = model.layers - trial.amount(model.layers), self.arguments["repair"]
        writing, size = model.written(kept), model.bytes_of(kept)
        if not repair:
            return Cost(writing, size, 0, read=size)
        tokens = repair["samples"] * repair["length"]
        fits = FITTED * model.layers * model.fitted(tokens)
        held = model.hidden(tokens, REPAIRED_STREAMS) + model.fit_bytes(tokens)
        walk = model.walk(fits + tokens * model.passed(REPAIR_WALKS * model.layers), model.layers, held=held)
        return Cost(added((writing, walk.seconds)), size, walk.memory, read=added((walk.read, size)))


class _HealingStep(Step):
    """Healing. A run that was killed goes on from its state, which lies beside the output."""

    writes_weights = True

    def task(self, job: Job, progress: Progress) -> HealingTask:
        teacher = job.open("teacher", progress) if "teacher" in job.places else None
        return task_of(self.arguments, teacher=teacher, compute=job.compute(self.arguments))

    def heal_words(self, place: str, places: Places, turns: Sequence[str] = ()) -> list[str]:
        options = [*changed_words(self.arguments, option_defaults()), *option_words({"teacher": places.get("teacher")})]
        return ["heal", *model_words(place), *options, *turns, "-o", "healed"]

    def heal_cost(self, kept: int, model: ModelSize, texts: TextSizes) -> Cost:
        """Healing so many layers: teacher and frozen ones are walked once."""
        from shortstack.healing.forecast import ACTIVATION_BYTES, STATE_BYTES, TRAINING_PASSES

        task = task_of(self.arguments)
        trained, running = task.method.layer_counts(kept)
        weights = 0 if isinstance(task.method, healing.Lora) else model.parameters_of(trained)
        resident = (model.parameters_of(running) + model.checkpoint.sizes.other_parameters) * model.dtype_bytes
        tokens = task.schedule.micro * task.data.max_length
        activations = tokens * model.width * running * ACTIVATION_BYTES
        memory = resident + weights * STATE_BYTES + activations + 2 * model.logit_bytes
        text = texts.training(self.arguments, model)
        teacher = model.passed(model.layers, 1) if task.objective.teaches else 0.0
        samples = text.tokens // task.data.max_length if text else 0  # about: as if each were as long as it may be
        passes = task.schedule.passes(max(1, samples)) * TRAINING_PASSES
        each = teacher + model.passed(kept - running) + passes * model.passed(running, 1)
        seconds = text and text.seconds + text.tokens * each + model.opened(kept) + model.written(kept)
        frozen = model.width * model.dtype_bytes if running < kept else 0
        taught = 8 * task.objective.top_k if task.objective.teaches else 0  # a token's number and its log probability
        size, whole = model.bytes_of(kept), model.bytes_of(model.layers)
        read = HEALING_READS * size + (TEACHER_READS * whole if task.objective.teaches else 0)
        return Cost(seconds, size, int(memory), text and int(text.tokens * (frozen + taught)), read)


class HealStep(_HealingStep):
    """heal()."""

    kind = "heal"

    @classmethod
    def of(cls, known: Known, trial: Trial, contents: Contents, place: str) -> HealStep:
        arguments = trial.heal_arguments
        inputs = {"checkpoint": contents.identity, "data": known.texts[arguments["data"]]}
        teacher = _teacher(trial)
        inputs |= {name: known.model(trial) for name in teacher}
        return cls(arguments, inputs, {"checkpoint": place, **teacher})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint, task = job.open("checkpoint", progress), self.task(job, progress)
        healed = healing.heal(checkpoint, job.output, task, resume=True, progress=progress)
        contents = Contents.of(Checkpoint.open(job.output))
        return {**healed.to_dict(), "output": f"artefacts/{job.key}", **contents.result}

    def words(self, places: Places) -> list[str]:
        return self.heal_words(places["checkpoint"], places)

    def cost(self, trial: Costed, model: ModelSize, texts: TextSizes) -> Cost:
        return self.heal_cost(model.layers - trial.amount(model.layers), model, texts)


class TurnsStep(_HealingStep):
    """heal_in_turns(): so many layers go and the rest heals, again and again."""

    kind = "turns"

    @classmethod
    def of(cls, known: Known, trial: Trial) -> TurnsStep:
        turns = {"metric": trial.metric, "drop": trial.drop, "step": trial.step, **trial.calibration_arguments}
        arguments = {"turns": turns, **trial.heal_arguments, "dtype": known.dtype}
        inputs = {"model": known.model(trial), "data": known.texts[arguments["data"]]}
        if trial.calibration:
            inputs["text"] = known.texts[trial.calibration.text]
        return cls(arguments, inputs, {"model": trial.model, **_teacher(trial)})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint, task = job.open("model", progress), self.task(job, progress)
        given = {name: value for name, value in self.arguments["turns"].items() if value is not None}
        turns = healing.Turns(**given)
        result = healing.heal_in_turns(checkpoint, job.output, turns, task, resume=True, progress=progress)
        healed = Checkpoint.open(job.output)
        removed = tuple(sorted(skipped_layers(healed, checkpoint)))
        plan = Plan(checkpoint.anatomy.layers, removed, f"{turns.metric}, in turns").sized(checkpoint.sizes).to_dict()
        contents = Contents.of(healed)
        return {**result.to_dict(), "output": f"artefacts/{job.key}", "plan": plan, **contents.result}

    def words(self, places: Places) -> list[str]:
        turns = changed_words(self.arguments["turns"], defaults_of(Choice, CalibrationText))
        return self.heal_words(places["model"], places, turns)

    def cost(self, trial: Costed, model: ModelSize, texts: TextSizes) -> Cost:
        gone = trial.amount(model.layers)
        step = trial.step or gone
        kept = [model.layers - min(before + step, gone) for before in range(0, gone, step)]
        turns = [self.heal_cost(layers, model, texts) for layers in kept]
        seconds = added([*(turn.seconds for turn in turns), *(model.written(layers) for layers in kept)])
        cache, read = (added(getattr(turn, name) for turn in turns) for name in ("cache", "read"))
        return Cost(seconds, turns[-1].disk, turns[0].memory, cache, read)


def _windows(job: Job, checkpoint: Checkpoint, arguments: Mapping[str, Any], progress: Progress) -> Tokens:
    """The windows of the text that arguments of a step ask for."""
    from shortstack.decoder import calibration_tokens

    text, compute = calibration_text(arguments), job.compute(arguments)
    return calibration_tokens(checkpoint, text, compute=compute, progress=progress)


def _teacher(trial: Trial) -> dict[str, str]:
    """The unpruned model as the teacher that a step reads, where the options of healing want one."""
    return {"teacher": trial.model} if task_of(trial.heal_arguments).needs_teacher else {}


KINDS = tuple(step.kind for step in (ScoreStep, PlanStep, PruneStep, HealStep, TurnsStep, EvaluateStep, ProfileStep))
