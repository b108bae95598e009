"""The step that writes a checkpoint without some layers, repaired in closed form or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shortstack import pruning, repairing
from shortstack.data import CalibrationText
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress
from shortstack.planning import Plan
from shortstack.planning.layer_sets import show_layers
from shortstack.study.steps import Contents, Cost, Job, Known, Places, Step
from shortstack.study.trial import RepairText, Trial
from shortstack.study.words import changed_words, defaults_of, model_words

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.repairing import Repair
    from shortstack.study.sizes import ModelSize, TextSizes

REPAIR_WALKS = 4  # the whole model's, the shorter one's, and that again for each place that is refitted


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
        repair = self._repair(job, checkpoint, progress) if self.arguments["repair"] else None
        pruned = pruning.prune(checkpoint, plan, job.output, repair=repair, progress=progress)
        return {**plan.to_dict(), "repair": repair.to_dict() if repair else None, **Contents.of(pruned).result}

    def _repair(self, job: Job, checkpoint: Checkpoint, progress: Progress) -> Repair:
        from shortstack.repairing.fit import HELD_OUT

        options = self.arguments["repair"]
        text = CalibrationText(options["text"], options["samples"], options["length"])
        tokens = text.tokens(checkpoint.tokenizer(), options["seed"], at_least=HELD_OUT)
        removed = frozenset(self.arguments["removed"])
        return repairing.repair(checkpoint, removed, tokens, compute=job.compute(options), progress=progress)

    def words(self, places: Places) -> list[str]:
        options: dict[str, Any] = {"layers": show_layers(self.arguments["removed"]).replace(" ", "")}
        defaults: dict[str, Any] = {"layers": None, "repair": False, "repair_samples": RepairText().samples}
        if self.arguments["repair"]:
            repair = dict(self.arguments["repair"])
            options |= {"repair": True, "repair_samples": repair.pop("samples"), **repair}
        changed = changed_words(options, {**defaults, **defaults_of(CalibrationText, Compute)})
        return ["prune", *model_words(places["model"]), *changed, "-o", "pruned"]

    def cost(self, trial: Trial, model: ModelSize, texts: TextSizes) -> Cost:
        kept, repair = model.layers - trial.amount(model.layers), self.arguments["repair"]
        writing = model.written(kept)
        if not repair:
            return Cost(writing, model.bytes_of(kept), 0)
        tokens = repair["samples"] * repair["length"]
        walks = model.opened(model.layers) + tokens * model.passed(REPAIR_WALKS * model.layers)
        return Cost(writing + walks, model.bytes_of(kept), model.loaded_bytes)
