"""The step that chooses the layers to remove: by scores, by measuring shorter models, or by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shortstack import planning
from shortstack.data import CalibrationText, Tokens
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress
from shortstack.planning import Choice
from shortstack.scoring import Scores
from shortstack.study.steps import Cost, Job, Known, Places, Step, added
from shortstack.study.trial import Trial, calibration_windows
from shortstack.study.words import changed_words, defaults_of, model_words

if TYPE_CHECKING:
    from shortstack.study.kinds.score import ScoreStep
    from shortstack.study.sizes import ModelSize, TextSizes


class PlanStep(Step):
    """choose()."""

    kind = "plan"

    @classmethod
    def of(cls, known: Known, trial: Trial, score: ScoreStep | None, values: str | None) -> PlanStep:
        """values: the digest of the scores by the trial's metric, where there are some."""
        choice = trial.choice
        arguments: dict[str, Any] = {
            "metric": choice.metric,
            "block": choice.one_window,
            "layers": choice.layers,
            "drop": choice.drop,
            "step": choice.step,
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
        names = ("metric", "block", "layers", "drop", "step")
        search = self.arguments["metric"] is None and self.arguments["layers"] is None
        return Choice(**{name: self.arguments[name] for name in names}, search=search)

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint = job.open("model", progress)
        source: Scores | Tokens | None
        if "score" in job.given:
            source = Scores.from_dict(job.given["score"], where="score")
        else:
            source = calibration_windows(self.arguments, checkpoint)
        compute = job.compute(self.arguments)
        chosen = planning.choose(checkpoint, self.choice, source, compute=compute, progress=progress)
        return job.saved("plan.json", chosen.plan.sized(checkpoint.sizes).to_dict())

    def words(self, places: Places) -> list[str]:
        source = [f"{places['score']}/scores.json"] if "score" in places else model_words(places["model"])
        arguments = {**self.arguments, "search": self.choice.search}
        return [
            "plan",
            *source,
            *changed_words(arguments, defaults_of(Choice, CalibrationText, Compute)),
            "-o",
            "plan.json",
        ]

    def cost(self, trial: Trial, model: ModelSize, texts: TextSizes) -> Cost:
        from shortstack.planning.measured import Budget

        if not trial.choice.measures:
            return Cost(model.pace.opening, 0, 0)
        layers = model.layers * (model.layers + 1) / 2
        walks = trial.amount(model.layers) / (trial.step or 1)
        if trial.choice.search:
            sets = Budget().generations * Budget().offspring
            layers, walks = layers + sets * model.layers, 1
        walk = texts.seconds(self.arguments, model, walks * model.passed(layers, layers / model.layers))
        return Cost(added((model.opened(model.layers), walk)), 0, model.loaded_bytes)
