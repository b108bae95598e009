"""The steps that heal: a pruned checkpoint, or the whole model cut and healed in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shortstack import healing
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers
from shortstack.data import CalibrationText
from shortstack.data.sources import parse_samples
from shortstack.healing.options import heal_arguments, heal_groups, option_defaults
from shortstack.machine.progress import Progress
from shortstack.planning import Choice, Plan
from shortstack.study.steps import Contents, Cost, Job, Known, Places, Step, added
from shortstack.study.trial import Trial
from shortstack.study.words import changed_words, defaults_of, model_words, option_words

if TYPE_CHECKING:
    from shortstack.study.sizes import ModelSize, TextSizes


class HealStep(Step):
    """heal(). A run that was killed goes on from its state, which lies beside the output."""

    kind = "heal"
    writes_weights = True

    @classmethod
    def of(cls, known: Known, trial: Trial, contents: Contents, place: str) -> HealStep:
        arguments = trial.heal_arguments
        inputs = {"checkpoint": contents.identity, "data": known.texts[arguments["data"]]}
        reads = {"checkpoint": place}
        if needs_teacher(arguments):
            inputs["teacher"], reads["teacher"] = known.model(trial), trial.model
        return cls(arguments, inputs, reads)

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        healed = healing.heal(job.open("checkpoint", progress), job.output, **_healing(self, job, progress))
        checkpoint = Checkpoint.open(job.output)
        return {**healed.to_dict(), "output": f"artefacts/{job.key}", **Contents.of(checkpoint).result}

    def words(self, places: Places) -> list[str]:
        return _words(self.arguments, places["checkpoint"], places.get("teacher"))

    def cost(self, trial: Trial, model: ModelSize, texts: TextSizes) -> Cost:
        return _cost(self.arguments, model.layers - trial.amount(model.layers), model, texts)


class TurnsStep(Step):
    """heal_in_turns(): so many layers go and the rest heals, again and again."""

    kind = "turns"
    writes_weights = True

    @classmethod
    def of(cls, known: Known, trial: Trial) -> TurnsStep:
        turns = {"metric": trial.metric, "drop": trial.drop, "step": trial.step, **trial.calibration_arguments}
        arguments = {"turns": turns, **trial.heal_arguments}
        inputs = {"model": known.model(trial), "data": known.texts[arguments["data"]]}
        if trial.calibration:
            inputs["text"] = known.texts[trial.calibration.text]
        reads = {"model": trial.model} | ({"teacher": trial.model} if needs_teacher(arguments) else {})
        return cls(arguments, inputs, reads)

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint, options = job.open("model", progress), dict(self.arguments["turns"])
        if options["text"] is None:
            del options["text"]
        else:
            options["samples"] = parse_samples(options["samples"])
        turns = healing.Turns(**options)
        result = healing.heal_in_turns(checkpoint, job.output, turns, **_healing(self, job, progress))
        healed = Checkpoint.open(job.output)
        removed = tuple(sorted(skipped_layers(healed, checkpoint)))
        plan = Plan(checkpoint.anatomy.layers, removed, f"{turns.metric}, in turns").sized(checkpoint.sizes)
        return {
            **result.to_dict(),
            "output": f"artefacts/{job.key}",
            "plan": plan.to_dict(),
            **Contents.of(healed).result,
        }

    def words(self, places: Places) -> list[str]:
        turns = changed_words(self.arguments["turns"], defaults_of(Choice, CalibrationText))
        return _words(self.arguments, places["model"], places.get("teacher"), turns)

    def cost(self, trial: Trial, model: ModelSize, texts: TextSizes) -> Cost:
        gone = trial.amount(model.layers)
        step = trial.step or gone
        kept = [model.layers - min(before + step, gone) for before in range(0, gone, step)]
        turns = [_cost(self.arguments, layers, model, texts) for layers in kept]
        seconds = added([*(turn.seconds for turn in turns), *(model.written(layers) for layers in kept)])
        return Cost(seconds, turns[-1].disk, turns[0].memory)


def needs_teacher(arguments: Mapping[str, Any]) -> bool:
    """Whether options of heal want a teacher: the unpruned model."""
    return arguments["loss"] == "distill" or bool(arguments["self_generate"])


def _healing(step: Step, job: Job, progress: Progress) -> dict[str, Any]:
    """What heal() is given."""
    return {
        **heal_arguments(*heal_groups(step.arguments)),
        "teacher": job.open("teacher", progress) if "teacher" in job.places else None,
        "device": job.device,
        "resume": True,
        "progress": progress,
    }


def _words(arguments: Mapping[str, Any], place: str, teacher: str | None, turns: Sequence[str] = ()) -> list[str]:
    options = [*changed_words(arguments, option_defaults()), *option_words({"teacher": teacher}), *turns]
    return ["heal", *model_words(place), *options, "-o", "healed"]


def _cost(arguments: Mapping[str, Any], kept: int, model: ModelSize, texts: TextSizes) -> Cost:
    """Healing so many layers: the frozen ones are walked once, a backward pass takes twice a forward one."""
    from shortstack.healing.forecast import ACTIVATION_BYTES, STATE_BYTES
    from shortstack.healing.layer_choice import Places as LayerChoice
    from shortstack.healing.methods import method_named

    learned, part, _, course = heal_groups(arguments)
    method, schedule = method_named(part.method), course.made()
    chosen = LayerChoice(part.last, part.layers, part.near_cut)
    trained, running = chosen.counted(kept, kept if method.last is None else method.last)
    weights = 0 if "rank" in method.options else model.parameters_of(trained)
    resident = (model.parameters_of(running) + model.checkpoint.sizes.other_parameters) * model.dtype_bytes
    activations = schedule.micro * learned.max_length * model.width * running * ACTIVATION_BYTES
    memory = resident + weights * STATE_BYTES + activations + 2 * model.logit_bytes
    text = texts.training(arguments, model)
    each = model.passed(kept - running) + schedule.epochs * 3 * model.passed(running, 1)
    seconds = text and text.seconds + text.tokens * each + model.opened(kept) + model.written(kept)
    return Cost(seconds, model.bytes_of(kept), int(memory))
