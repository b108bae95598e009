"""The step that measures how large and how fast a checkpoint is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from shortstack import profiling
from shortstack.machine.progress import Progress
from shortstack.machine.yamlfile import Part
from shortstack.study.steps import Contents, Cost, Job, Known, Places, Step
from shortstack.study.trial import Trial
from shortstack.study.words import changed_words, model_words

if TYPE_CHECKING:
    from shortstack.study.sizes import ModelSize, TextSizes

PROFILE_TURNS = 8  # of profile(): one for the memory, one to warm up, six that count


class ProfileOptions(Part):
    """What profile() measures."""

    batch_sizes: tuple[int, ...] = (1, 8)
    prompt: int = Field(default=128, ge=1)
    new_tokens: int = Field(default=32, ge=1)


class ProfileStep(Step):
    """profile(). Known by the shapes alone: cuts of one shape are equally fast."""

    kind = "profile"

    @classmethod
    def of(cls, known: Known, wanted: ProfileOptions, contents: Contents, place: str) -> ProfileStep:
        arguments = {**wanted.model_dump(mode="json"), "dtype": known.dtype}
        return cls(arguments, {"shape": contents.shape}, {"checkpoint": place})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        from shortstack.profiling.speed import Load

        result = profiling.profile(
            job.open("checkpoint", progress),
            batch_sizes=self.arguments["batch_sizes"],
            load=Load(prompt=self.arguments["prompt"], new_tokens=self.arguments["new_tokens"]),
            compute=job.compute(self.arguments),
            progress=progress,
        )
        return job.saved("profile.json", result.to_dict())

    def words(self, places: Places) -> list[str]:
        defaults = {**ProfileOptions().model_dump(mode="json"), "dtype": "auto"}
        defaults["batch_size"] = defaults.pop("batch_sizes")
        options = {**self.arguments, "batch_size": self.arguments["batch_sizes"]}
        return ["profile", *model_words(places["checkpoint"]), *changed_words(options, defaults)]

    def cost(self, trial: Trial, model: ModelSize, texts: TextSizes) -> Cost:
        unpruned = self.reads["checkpoint"] == trial.model
        layers = model.layers - (0 if unpruned else trial.amount(model.layers))
        prompt, new = self.arguments["prompt"], self.arguments["new_tokens"]
        seconds = sum(
            PROFILE_TURNS * (batch * prompt * model.passed(layers) + new * model.step(layers, batch))
            for batch in self.arguments["batch_sizes"]
        )
        return Cost(model.opened(layers) + seconds, 0, model.loaded_bytes)
