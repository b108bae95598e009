"""The steps of a study's trials. A step is known by what it computes and on what, so equal steps of trials are one.

A key is the digest of a step's kind, its options, and the contents of its inputs: a checkpoint by its digests, a plan by its
layers, scores by their values, a text by its words. Two metrics that select the same layers share all steps from there on.
So a step's key is known only once the steps before it have results. Until then, `foreseen` stands in for those: it gives
the number of steps at most, since plans may turn out to be equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shortstack.data import Text
from shortstack.data.sources import source_digest
from shortstack.errors import InputError
from shortstack.evaluation import load_harness
from shortstack.machine.files import digest
from shortstack.planning.layer_sets import show_drop
from shortstack.profiling import Timing
from shortstack.study.grid import Study
from shortstack.study.steps import Step
from shortstack.study.trial import Heal, Model, Trial

Result = Mapping[str, Any]
Results = Callable[[str], Result | None]  # of a step by its key


@dataclass(frozen=True)
class Graph:
    """The steps of a study. models: by name; texts: the digest of each."""

    study: Study
    models: Mapping[str, Model]
    texts: Mapping[str, str]

    def steps(self, trial: Trial, results: Results) -> tuple[dict[str, Step], dict[str, Step]]:
        """Return the steps of a trial whose keys are known, by role; and all of them, the later ones foreseen."""
        known, every, complete = dict[str, Step](), dict[str, Step](), True

        def result(step: Step) -> Result:
            nonlocal complete
            found = results(step.key)
            complete = complete and found is not None
            return found or foreseen(step)

        for role, step in self._path(trial, result):
            every[role] = step
            if complete:
                known[role] = step
        return known, every

    def _path(self, trial: Trial, result: Callable[[Step], Result]) -> Iterator[tuple[str, Step]]:
        """Yield the steps by role; what follows from a result is asked of `result`."""
        model = self.models[trial.model].identity
        yield from self._measured("base", model, trial.model)
        if trial.heal and trial.heal.options.layers_per_round:
            last = self._rounds(trial, trial.heal)
        else:
            if trial.needs_scores:
                score = self._score(trial)
                yield "score", score
                plan = self._plan_by_scores(trial, score.key, result(score))
            else:
                plan = self._plan(trial)
            yield "plan", plan
            last = self._prune(trial, result(plan)["removed"])
            yield "prune", last
            if self.study.evaluate_pruned or not trial.heal:
                yield from self._measured("pruned", result(last)["identity"], last.key, profiled=not trial.heal)
            if trial.heal:
                inputs, places = {"model": result(last)["identity"]}, {"model": last.key}
                last = self._healing("heal", trial, trial.heal, {}, inputs, places)
        if trial.heal:
            yield "heal", last
            yield from self._measured("healed", result(last)["identity"], last.key)

    def _score(self, trial: Trial) -> Step:
        """Return the walk that gives a trial's scores, with every metric that it can feed."""
        walk = self._walk(trial, [])
        return self._walk(trial, sorted(self._metrics[walk.key]))

    @cached_property
    def _metrics(self) -> Mapping[str, set[str]]:
        """The metrics that one walk feeds, by the key of the walk without any."""
        metrics = defaultdict[str, set[str]](set)
        for trial in self.study.trials:
            if trial.needs_scores:
                metrics[self._walk(trial, []).key].add(trial.selection.by.name)
        return metrics

    def _walk(self, trial: Trial, metrics: list[str]) -> Step:
        windows = trial.selection.how.window and trial.selection.by.windows
        window = trial.removed(self.models[trial.model]) or str(trial.selection.drop) if windows else None
        arguments = {"metrics": metrics, "window": window, "seed": trial.selection_seed, "dtype": self.study.dtype}
        return self._on_text("score", trial, arguments)

    def _plan_by_scores(self, trial: Trial, score: str, scores: Result) -> Step:
        inputs = {"model": self.models[trial.model].identity, "values": digest(_values(scores, trial))}
        return Step("plan", {"selection": trial.selection}, inputs, {"model": trial.model, "score": score})

    def _plan(self, trial: Trial) -> Step:
        dtype = {"dtype": self.study.dtype} if trial.calibration else {}
        return self._on_text("plan", trial, {"selection": trial.selection, "seed": trial.selection_seed, **dtype})

    def _on_text(self, kind: str, trial: Trial, arguments: Mapping[str, Any]) -> Step:
        """Return a step that reads the base model and, if the trial has one, the calibration text."""
        text = trial.calibration
        inputs = {"model": self.models[trial.model].identity, "text": text and self._digest(text)}
        return Step(kind, {**arguments, "text": text}, inputs, {"model": trial.model})

    def _digest(self, text: Text) -> list[list[Any]]:
        return [[source.weight, self.texts[source.name]] for source in text.sources]

    def _prune(self, trial: Trial, removed: Any) -> Step:
        arguments = {"removed": removed, "repair": trial.repair}
        inputs: dict[str, Any] = {"model": self.models[trial.model].identity}
        if trial.repair:
            arguments |= {"seed": trial.seed, "dtype": self.study.dtype}
            inputs["text"] = self._digest(trial.repair)
        return Step("prune", arguments, inputs, {"model": trial.model})

    def _rounds(self, trial: Trial, heal: Heal) -> Step:
        text = trial.calibration
        rounds: dict[str, Any] = {
            "metric": trial.selection.by.name,
            "drop": show_drop(trial.selection.drop or 0),
            "step": heal.options.layers_per_round,
        }
        arguments = {"rounds": {**rounds, "text": text}, "seed": trial.selection_seed, "dtype": self.study.dtype}
        inputs = {"model": self.models[trial.model].identity, "text": text and self._digest(text)}
        return self._healing("rounds", trial, heal, arguments, inputs, {"model": trial.model})

    def _healing(self, kind: str, trial: Trial, heal: Heal, arguments: Any, inputs: Any, places: Any) -> Step:
        """Return a step that heals; it reads the base model, or another teacher, if the options need it."""
        options, config = replace(heal.options, seed=trial.seed), heal.options.config
        inputs = {**inputs, "data": self._digest(config.text)}
        if config.teacher:
            inputs["teacher"] = self.models[config.teacher].identity
        if config.needs_base:
            inputs, places = {**inputs, "base": self.models[trial.model].identity}, {**places, "base": trial.model}
        return Step(kind, {"options": options, **arguments}, inputs, places)

    def _measured(self, which: str, identity: Any, place: str, *, profiled: bool = True) -> Iterator[tuple[str, Step]]:
        """Yield the steps that measure a model."""
        study, dtype = self.study, {"dtype": self.study.dtype}
        texts = {source: self.texts[source] for source in evaluated(study)}
        arguments = {"config": study.evaluation, **dtype}
        yield f"evaluate_{which}", Step("evaluate", arguments, {"model": identity, "texts": texts}, {"model": place})
        if study.profile and profiled:
            timing = Timing() if study.profile is True else study.profile
            inputs = {"config": identity["config"]}  # models of one shape are equally fast
            role = "profile_base" if which == "base" else "profile"
            yield role, Step("profile", {"timing": timing, **dtype}, inputs, {"model": place})


def graph_of(study: Study, path: str | Path, models: Mapping[str, Model]) -> Graph:
    """Return the steps of a study. Refuse what no step could use: a text, a task, a cut of a model with too few layers.

    Raises:
        InputError, PlanError, DataError: as run_study().
    """
    study.evaluation.check_texts()
    if study.evaluation.tasks:
        load_harness().load(study.evaluation)
    for trial in study.trials:
        for text in filter(None, (trial.calibration, trial.repair)):
            text.check()
        if trial.heal:
            trial.heal.options.config.check()
        try:
            trial.check_fits(models[trial.model])
        except InputError as error:
            raise error.at(f"{path}: {trial.model}") from error
    return Graph(study, models, {source: source_digest(source) for source in sources(study)})


def evaluated(study: Study) -> list[str]:
    """Return the texts and folders that evaluations read."""
    options = study.evaluation
    folders = [str(folder) for folder in (options.data_dir, options.include) if folder]
    return [*options.perplexity, *folders]


def sources(study: Study) -> list[str]:
    """Return every text and folder that a study reads, each once."""
    named = evaluated(study)
    for trial in study.trials:
        texts = trial.calibration, trial.repair, trial.heal and trial.heal.options.config.text
        named += [source.name for text in texts if text for source in text.sources]
    return list(dict.fromkeys(named))


def foreseen(step: Step) -> Result:
    """Return a result that only tells steps apart."""
    unknown = {metric: [step.key, metric] for metric in step.arguments.get("metrics", ())}
    return {"scores": unknown, "blocks": unknown, "removed": [step.key], "identity": {"config": step.key}}


def _values(scores: Result, trial: Trial) -> Any:
    """Return the scores by a trial's metric: of blocks, if it removes one and the metric scores those."""
    metric = trial.selection.by.name
    blocks = scores["blocks"].get(metric) if trial.selection.how.window else None
    return scores["scores"][metric] if blocks is None else blocks
