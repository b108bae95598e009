"""The step that measures a checkpoint: perplexity, tasks, probes and what it writes freely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from shortstack import evaluation
from shortstack.data.tokens import encode
from shortstack.machine.progress import Progress
from shortstack.machine.yamlfile import Part
from shortstack.study.references import expanded
from shortstack.study.steps import Contents, Cost, Job, Known, Places, Step, added
from shortstack.study.trial import Trial
from shortstack.study.words import changed_words, model_words, option_words

if TYPE_CHECKING:
    from shortstack.study.sizes import ModelSize, TextSizes


class EvaluateOptions(Part):
    """What is measured of every checkpoint; seed: of the windows that are drawn."""

    perplexity: tuple[str, ...] = ("pydoc",)
    length: int = Field(default=512, ge=2)
    samples: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    tasks: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    data_dir: str | None = None
    include: str | None = None
    probe_items: int = Field(default=0, ge=0)
    collapse: bool | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """As arguments of a step."""
        return self.model_dump(mode="json", include=set(EvaluateOptions.model_fields))

    def check(self) -> None:
        """Say what is wrong before anything runs.

        Raises:
            InputError: there is no such task, or no such folder.
        """
        _evaluate_arguments(expanded(self.arguments))


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
        arguments = dict(self.arguments)
        writing = {"probes": bool(arguments["probe_items"]) or None, "collapse_check": arguments.pop("collapse")}
        options = [*changed_words(arguments, defaults), *option_words(writing)]
        return ["evaluate", *model_words(places["checkpoint"]), *options]

    def cost(self, trial: Trial, model: ModelSize, texts: TextSizes) -> Cost:
        from shortstack.evaluation.degeneration import NEW_TOKENS, PROMPTS
        from shortstack.evaluation.probes import probes

        unpruned, options = self.reads["checkpoint"] == trial.model, self.arguments
        layers = model.layers - (0 if unpruned else trial.amount(model.layers))
        parts: list[float | None] = [model.opened(layers)]
        for text in options["perplexity"]:
            windows = {**options, "text": text}
            parts.append(texts.seconds(windows, model, model.passed(layers, 1), held_out=True))
        if options["tasks"]:
            amounts = texts.tasks(options, model, lambda: _evaluate_arguments(expanded(options))["tasks"])
            parts.append(None if amounts is None else added(model.answered(layers, amount) for amount in amounts))
        tokenizer = model.checkpoint.tokenizer()
        if options["probe_items"]:
            items = probes(options["seed"], options["probe_items"])
            prompts = [len(encode(tokenizer, item.prompt)) for item in items]
            parts.append(model.wrote(layers, prompts, [item.room(tokenizer) for item in items]))
        cut = not unpruned or model.checkpoint.record.get("verb") in {"prune", "heal"}
        if cut if options["collapse"] is None else options["collapse"]:
            prompts = [len(encode(tokenizer, prompt)) for prompt in PROMPTS]
            parts.append(model.wrote(layers, prompts, [NEW_TOKENS] * len(prompts)))
        return Cost(added(parts), 0, model.loaded_bytes)


def _evaluate_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluate() is given for the evaluation options of a study.

    Raises:
        InputError: there is no such task, or no such folder.
    """
    names = ("perplexity", "length", "samples", "probe_items", "collapse")
    tasks = None
    if options["tasks"]:
        folders = {"data": options["data_dir"], "include": options["include"]}
        tasks = evaluation.Tasks(options["tasks"], options["limit"], **folders, seed=options["seed"])
    return {**{name: options[name] for name in names}, "tasks": tasks}
