"""The kinds of steps that measure a checkpoint, with the options that a study's file gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from shortstack import evaluation, profiling
from shortstack.errors import InputError
from shortstack.evaluation import EvaluationText, GenerationChecks, Tasks
from shortstack.machine.device import Compute
from shortstack.machine.formats import option_words
from shortstack.machine.options import options_of
from shortstack.machine.progress import Progress
from shortstack.machine.yamlfile import Part, amount
from shortstack.profiling import Timing
from shortstack.study.steps import Contents, Job, Known, Places, Step
from shortstack.study.words import changed_words, expanded, model_words

OPTIONS = {  # that a study's file has in other groups
    name: known
    for component in (EvaluationText, GenerationChecks, Tasks, Timing, Compute)
    for name, _, known in options_of(component)
}
HELP = {name: known.help for name, known in OPTIONS.items()}
OF_TASKS = ("limit", "num_fewshot", "data_dir", "include")  # what only tasks take


class EvaluateOptions(Part):
    """What is measured of every checkpoint; seed: of the windows that are drawn."""

    perplexity: tuple[str, ...] = ("pydoc",)
    length: int = Field(default=512, ge=2, description=HELP["length"])
    samples: Annotated[int | float | None, *amount(OPTIONS["samples"])] = Field(
        default=None, description=HELP["samples"]
    )
    seed: int = Field(default=0, ge=0, description=HELP["seed"])
    tasks: tuple[str, ...] = ()
    limit: Annotated[int | float | None, *amount(OPTIONS["limit"])] = Field(default=None, description=HELP["limit"])
    num_fewshot: int | None = Field(default=None, ge=0, description=HELP["num_fewshot"])
    data_dir: str | None = Field(default=None, description=HELP["data_dir"])
    include: str | None = Field(default=None, description=HELP["include"])
    probe_items: int = Field(default=0, ge=0, description=f"{HELP['probe_items']} Default: no probes.")
    collapse: bool | None = Field(default=None, description=HELP["collapse_check"])

    @property
    def arguments(self) -> dict[str, Any]:
        """As arguments of a step."""
        return self.model_dump(mode="json", include=set(EvaluateOptions.model_fields))

    def check(self) -> None:
        """Say what is wrong before anything runs."""
        asked = _evaluate_arguments(expanded(self.arguments))
        asked["text"].check()
        if asked["tasks"]:
            asked["tasks"].load()
        alone = next((name for name in OF_TASKS if getattr(self, name) is not None and not self.tasks), None)
        if alone:
            fix = "add tasks, such as paper, or leave it out"
            raise InputError("none", expected="tasks beside it", fix=fix, option=alone)


class EvaluateStep(Step):
    """evaluate()."""

    kind = "evaluate"

    @classmethod
    def of(cls, known: Known, wanted: EvaluateOptions, contents: Contents, place: str) -> EvaluateStep:
        options = wanted.arguments
        sources = [*options["perplexity"], *(options[name] for name in ("data_dir", "include") if options[name])]
        inputs = {"checkpoint": contents.identity, "texts": {source: known.texts[source] for source in sources}}
        return cls({**options, "dtype": known.dtype}, inputs, {"checkpoint": place})

    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        checkpoint, options = job.open("checkpoint", progress), _evaluate_arguments(self.arguments)
        result = evaluation.evaluate(checkpoint, **options, compute=job.compute(self.arguments), progress=progress)
        return job.saved("evaluation.json", result.to_dict())

    def words(self, places: Places) -> list[str]:
        defaults = {**EvaluateOptions().arguments, "perplexity": None, "dtype": "auto"}
        del defaults["collapse"]  # another word on the command line
        writing = {"probes": self.arguments["probe_items"] > 0 or None, "collapse_check": self.arguments["collapse"]}
        options = [*changed_words(self.arguments, defaults), *option_words(writing)]
        return ["evaluate", *model_words(places["checkpoint"]), *options]


def _evaluate_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluate() is given for the evaluation options of a study."""
    how, items = {name: options[name] for name in (*OF_TASKS, "seed")}, options["probe_items"]
    return {
        "text": EvaluationText(options["perplexity"], options["length"], options["samples"]),
        "tasks": Tasks(options["tasks"], **how) if options["tasks"] else None,
        "generation": GenerationChecks(items > 0, items or GenerationChecks.probe_items, options["collapse"]),
    }


class ProfileOptions(Part):
    """What profile() measures."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 8), min_length=1)
    prompt: int = Field(default=128, ge=1, description=HELP["prompt"])
    new_tokens: int = Field(default=32, ge=1, description=HELP["new_tokens"])


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
        timing = Timing(options["batch_sizes"], options["prompt"], options["new_tokens"])
        checkpoint, compute = job.open("checkpoint", progress), job.compute(options)
        result = profiling.profile(checkpoint, timing=timing, compute=compute, progress=progress)
        return job.saved("profile.json", result.to_dict())

    def words(self, places: Places) -> list[str]:
        defaults = {**ProfileOptions().model_dump(mode="json"), "dtype": "auto"}
        defaults["batch_size"] = defaults.pop("batch_sizes")
        options = {**self.arguments, "batch_size": self.arguments["batch_sizes"]}
        return ["profile", *model_words(places["checkpoint"]), *changed_words(options, defaults)]
