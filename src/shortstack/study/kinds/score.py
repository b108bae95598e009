"""The step that scores layers: one walk for every metric that the study wants of the same model and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shortstack import scoring
from shortstack.data import CalibrationText
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress
from shortstack.scoring.metrics import metric_named
from shortstack.study.steps import Cost, Job, Known, Places, Step, added
from shortstack.study.trial import Trial, calibration_windows
from shortstack.study.words import changed_words, defaults_of, model_words, option_words

if TYPE_CHECKING:
    from shortstack.study.sizes import ModelSize, TextSizes


class ScoreStep(Step):
    """score()."""

    kind = "score"

    @classmethod
    def of(cls, known: Known, trial: Trial, metrics: Sequence[str], window: int | str | None) -> ScoreStep:
        """metrics: every one that this walk feeds. window: layers of the blocks that are scored; None: single layers."""
        arguments = {
            "metrics": metrics,
            "window": window,
            **trial.calibration_arguments,
            "dtype": known.dtype,
        }
        text = {"text": known.texts[trial.calibration.text]} if trial.calibration else {}
        return cls(arguments, {"model": known.model(trial), **text}, {"model": trial.model})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint = job.open("model", progress)
        scores = scoring.score(
            checkpoint,
            calibration_windows(self.arguments, checkpoint),
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

    def cost(self, trial: Trial, model: ModelSize, texts: TextSizes) -> Cost:
        """Without each layer once, for metrics of losses; a backward pass takes twice a forward one."""
        feeds = {metric_named(name).feed for name in self.arguments["metrics"]}
        layers, heads = 0.0, 0
        if feeds & {"loss", "kl", "repair"}:
            layers, heads = model.layers * (model.layers + 1) / 2, model.layers + 1
        elif "hidden" in feeds:
            layers = model.layers
        if "gradient" in feeds:
            layers, heads = layers + 3 * model.layers, heads + 3
        walk = texts.seconds(self.arguments, model, model.passed(layers, heads)) if trial.calibration else 0.0
        return Cost(added((model.opened(model.layers), walk)), 0, model.loaded_bytes)
