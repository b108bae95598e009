"""The step types, with the options of those that measure a checkpoint.

A type is one class: its inputs, its call, and the command that does the same. To add one, write a class here, list it in
KINDS, and give it a place in a trial's path in `graph`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from shortstack import evaluation, healing, planning, profiling, pruning, scoring
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.evaluation import EvaluationText, GenerationChecks, Tasks
from shortstack.healing.task import option_defaults, task_of
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.formats import option_words, show_layers
from shortstack.machine.options import defaults_of, made_of
from shortstack.machine.progress import Progress
from shortstack.machine.yamlfile import part_of
from shortstack.planning import Choice, Plan
from shortstack.profiling import Timing
from shortstack.scoring import Scores
from shortstack.study.steps import Contents, Job, Known, Places, Step, changed_words, expanded, model_words
from shortstack.study.trial import StudyRepair, Trial, calibration_text

if TYPE_CHECKING:
    from shortstack.healing import HealingTask


EVALUATED = (EvaluationText, Tasks, GenerationChecks)
OF_TASKS = ("limit", "num_fewshot", "data_dir", "include", "max_length")  # what only tasks take


class ProfileOptions(part_of("ProfileOptions", Timing, bounded=True)):  # type: ignore[misc]  # made of options
    """Options of profile()."""


class EvaluationOptions(part_of("EvaluationOptions", *EVALUATED, bounded=True)):  # type: ignore[misc]  # made of options
    """How every checkpoint is measured; seed: of the windows that are drawn; pruned: also before it heals."""

    seed: int = Field(default=0, ge=0, description="Seed of the windows that are drawn.")
    pruned: bool = True
    profile: bool | ProfileOptions = False

    @property
    def profile_options(self) -> ProfileOptions | None:
        """The options of profile(); None if it is not measured."""
        return ProfileOptions() if self.profile is True else self.profile or None

    @property
    def arguments(self) -> dict[str, Any]:
        """As arguments of a step."""
        arguments: dict[str, Any] = self.model_dump(mode="json", exclude={"pruned", "profile"})
        return arguments

    @property
    def sources(self) -> list[str]:
        """Every text and folder that is read."""
        texts = EvaluationText(self.perplexity).sources
        return [*texts, *(str(folder) for folder in (self.data_dir, self.include) if folder)]

    def check(self) -> None:
        """Say what is wrong before anything runs."""
        arguments = _evaluate_arguments(expanded(self.arguments))
        arguments["text"].check()
        if arguments["tasks"]:
            arguments["tasks"].load()
        alone = next((name for name in OF_TASKS if getattr(self, name) is not None and not self.tasks), None)
        if alone:
            fix = "add tasks, such as paper, or leave it out"
            raise InputError("none", expected="tasks beside it", fix=fix, option=alone)
        profile = self.profile_options
        if profile and not made_of(Timing, profile.model_dump()).batch_sizes:
            raise InputError("none", expected="at least one", fix="write 1,8", option="batch_size")


class ScoreStep(Step):
    """score()."""

    kind = "score"

    @classmethod
    def of(cls, known: Known, trial: Trial, metrics: Sequence[str], window: int | str | None) -> ScoreStep:
        """Make the step.

        metrics: every one that this walk feeds. window: layers of the blocks that are scored; None: single layers.
        """
        arguments = {"metrics": metrics, "window": window, **trial.calibration_arguments, "dtype": known.dtype}
        text = {"text": known.texts[trial.calibration.text]} if trial.calibration else {}
        return cls(arguments, {"model": known.model(trial), **text}, {"model": trial.model})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint = job.open("model", progress)
        scores = scoring.score(
            checkpoint,
            calibration_text(self.arguments) if self.arguments["text"] else None,
            metrics=self.arguments["metrics"],
            window=self.arguments["window"],
            compute=job.compute(self.arguments),
            progress=progress,
        )
        return job.saved("scores.json", scores.to_dict())

    def command_line(self, places: Places) -> list[str]:
        metrics = option_words({"metric": self.arguments["metrics"], "window": self.arguments["window"]})
        other = changed_words(self.arguments, defaults_of(CalibrationText, Compute))
        return ["score", *model_words(places["model"]), *metrics, *other, "-o", "scores.json"]


class PlanStep(Step):
    """choose()."""

    kind = "plan"

    @classmethod
    def of(cls, known: Known, trial: Trial, score: ScoreStep | None, values: str | None) -> PlanStep:
        """Make the step. values: the digest of the scores by the trial's metric, where there are some."""
        choice = trial.choice
        arguments: dict[str, Any] = {
            "metric": choice.metric,
            "layers": choice.layers,
            "drop": choice.drop,
            "step": choice.step,
            "strategy": choice.strategy,
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
        return made_of(Choice, self.arguments)  # type: ignore[no-any-return]

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint = job.open("model", progress)
        source: Scores | CalibrationText | None = None
        if "score" in job.given:
            source = Scores.from_dict(job.given["score"], where="score")
        elif self.arguments["text"]:
            source = calibration_text(self.arguments)
        compute = job.compute(self.arguments)
        chosen = planning.choose(checkpoint, self.choice, source, compute=compute, progress=progress)
        return job.saved("plan.json", chosen.plan.sized(checkpoint.sizes).to_dict())

    def command_line(self, places: Places) -> list[str]:
        source = [f"{places['score']}/scores.json"] if "score" in places else model_words(places["model"])
        options = changed_words(self.arguments, defaults_of(Choice, CalibrationText, Compute))
        return ["plan", *source, *options, "-o", "plan.json"]


class PruneStep(Step):
    """prune(), with a repair where the trial wants it."""

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
        options = self.arguments["repair"]
        text = calibration_text(options).of_all(options["samples"]) if options else None
        compute = job.compute(options) if options else AUTO
        pruned = pruning.prune(checkpoint, plan, job.output, repair=text, compute=compute, progress=progress)
        return {**plan.to_dict(), "repair": pruned.record["repair"], **Contents.of(pruned).result}

    def command_line(self, places: Places) -> list[str]:
        options: dict[str, Any] = {"layers": show_layers(self.arguments["removed"]).replace(" ", "")}
        defaults: dict[str, Any] = {"layers": None, "repair": False, "repair_samples": StudyRepair().samples}
        if self.arguments["repair"]:
            repair = dict(self.arguments["repair"])
            options |= {"repair": True, "repair_samples": repair.pop("samples"), **repair}
        changed = changed_words(options, {**defaults, **defaults_of(CalibrationText, Compute)})
        return ["prune", *model_words(places["model"]), *changed, "-o", "pruned"]


class _HealingStep(Step):
    """Healing. A run that was killed goes on from its state, which lies beside the output."""

    writes_weights = True

    def task(self, job: Job, progress: Progress) -> HealingTask:
        teacher = job.open("teacher", progress) if "teacher" in job.places else None
        return task_of(self.arguments, teacher=teacher, compute=job.compute(self.arguments))

    def heal_words(self, place: str, places: Places, turns: Sequence[str] = ()) -> list[str]:
        options = [*changed_words(self.arguments, option_defaults()), *option_words({"teacher": places.get("teacher")})]
        return ["heal", *model_words(place), *options, *turns, "-o", "healed"]


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

    def command_line(self, places: Places) -> list[str]:
        return self.heal_words(places["checkpoint"], places)


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
        turns = healing.IterativeSchedule(**given)
        result = healing.heal_in_turns(checkpoint, job.output, turns, task, resume=True, progress=progress)
        healed = Checkpoint.open(job.output)
        removed = tuple(sorted(skipped_layers(healed, checkpoint)))
        plan = Plan(checkpoint.anatomy.layers, removed, f"{turns.metric}, in turns").sized(checkpoint.sizes).to_dict()
        contents = Contents.of(healed)
        return {**result.to_dict(), "output": f"artefacts/{job.key}", "plan": plan, **contents.result}

    def command_line(self, places: Places) -> list[str]:
        turns = changed_words(self.arguments["turns"], defaults_of(Choice, CalibrationText))
        return self.heal_words(places["model"], places, turns)


class EvaluateStep(Step):
    """evaluate()."""

    kind = "evaluate"

    @classmethod
    def of(cls, known: Known, wanted: EvaluationOptions, contents: Contents, place: str) -> EvaluateStep:
        inputs = {"checkpoint": contents.identity, "texts": {source: known.texts[source] for source in wanted.sources}}
        return cls({**wanted.arguments, "dtype": known.dtype}, inputs, {"checkpoint": place})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint, options = job.open("checkpoint", progress), _evaluate_arguments(self.arguments)
        result = evaluation.evaluate(checkpoint, **options, compute=job.compute(self.arguments), progress=progress)
        return job.saved("evaluation.json", result.to_dict())

    def command_line(self, places: Places) -> list[str]:
        defaults = {**EvaluationOptions().arguments, "perplexity": None, "dtype": "auto"}
        return ["evaluate", *model_words(places["checkpoint"]), *changed_words(self.arguments, defaults)]


def _evaluate_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    tasks = replace(made_of(Tasks, options), seed=options["seed"]) if options["tasks"] else None
    return {"text": made_of(EvaluationText, options), "tasks": tasks, "generation": made_of(GenerationChecks, options)}


class ProfileStep(Step):
    """profile(). Known by the shapes alone: cuts of one shape are equally fast."""

    kind = "profile"
    alone = True

    @classmethod
    def of(cls, known: Known, wanted: ProfileOptions, contents: Contents, place: str) -> ProfileStep:
        arguments = {**wanted.model_dump(mode="json"), "dtype": known.dtype}
        return cls(arguments, {"shape": contents.shape}, {"checkpoint": place})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        options = self.arguments
        timing, checkpoint, compute = made_of(Timing, options), job.open("checkpoint", progress), job.compute(options)
        result = profiling.profile(checkpoint, timing=timing, compute=compute, progress=progress)
        return job.saved("profile.json", result.to_dict())

    def command_line(self, places: Places) -> list[str]:
        defaults = {**ProfileOptions().model_dump(mode="json"), "dtype": "auto"}
        return ["profile", *model_words(places["checkpoint"]), *changed_words(self.arguments, defaults)]


def _teacher(trial: Trial) -> dict[str, str]:
    """Return the unpruned model as the teacher that a step reads, where the options of healing want one."""
    return {"teacher": trial.model} if task_of(trial.heal_arguments).needs_teacher else {}


KINDS = tuple(step.kind for step in (ScoreStep, PlanStep, PruneStep, HealStep, TurnsStep, EvaluateStep, ProfileStep))
