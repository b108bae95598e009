"""The step types that measure a checkpoint, with the options that a study's file gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from shortstack import evaluation, profiling
from shortstack.errors import InputError
from shortstack.evaluation import EvaluationText, GenerationChecks, Tasks
from shortstack.machine.options import made_of
from shortstack.machine.progress import Progress
from shortstack.machine.yamlfile import part_of
from shortstack.profiling import Timing
from shortstack.study.steps import Contents, Job, Known, Places, Step, changed_words, expanded, model_words

EVALUATED = (EvaluationText, Tasks, GenerationChecks)
OF_TASKS = ("limit", "num_fewshot", "data_dir", "include")  # what only tasks take


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

    def words(self, places: Places) -> list[str]:
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

    def words(self, places: Places) -> list[str]:
        defaults = {**ProfileOptions().model_dump(mode="json"), "dtype": "auto"}
        return ["profile", *model_words(places["checkpoint"]), *changed_words(self.arguments, defaults)]
