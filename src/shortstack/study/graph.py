"""Trials as steps that share work. A step is known by what it computes and on what, so what two trials share has one key.

A key is the digest of a step's kind, its arguments, and the contents of its inputs: a checkpoint counts by the digest of its
weights, a plan by its layers, scores by their values, a text by its words. Two metrics that choose the same layers share
everything from there on. So a step's key is known only once the steps before it have results. Before that, `foreseen` stands
in for those: it tells how many steps there are at most, since plans may turn out to be equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shortstack.data import Text
from shortstack.machine.files import digest
from shortstack.study.grid import Study
from shortstack.study.step_types import EvaluateStep, HealStep, PlanStep, ProfileStep, PruneStep, ScoreStep, TurnsStep
from shortstack.study.steps import Contents, Known, Step
from shortstack.study.trial import Trial

Result = Callable[[Step], Mapping[str, Any]]
Results = Callable[[Step], Mapping[str, Any] | None]
Written = tuple[Contents, str]  # what a checkpoint is known by, and where it is


@dataclass(frozen=True)
class Graph:
    """A study's steps. models: what each source model is known by; texts: what each text is."""

    study: Study
    models: Mapping[str, Contents]
    texts: Mapping[str, str]

    def steps(self, trial: Trial, results: Results) -> tuple[dict[str, Step], dict[str, Step]]:
        """Return the steps of a trial whose keys are known, by role; and all of them, the later ones foreseen."""
        known, whole, lacking = dict[str, Step](), dict[str, Step](), list[Step]()

        def result(step: Step) -> Mapping[str, Any]:
            there = results(step)
            if there is None:
                lacking.append(step)
            return there or foreseen(step)

        for role, step in self._path(trial, result):
            whole[role] = step
            if not lacking:
                known[role] = step
        return known, whole

    @cached_property
    def known(self) -> Known:
        return Known(self.models, self.texts, self.study.compute.dtype)

    def _score(self, trial: Trial, metrics: Sequence[str] = ()) -> ScoreStep:
        layers = self.models[trial.model].layers
        window = None
        if trial.removes_window and trial.choice.by.windows:
            window = trial.drop or "" if layers is None else trial.amount(layers)
        return ScoreStep.of(self.known, trial, metrics, window)

    @cached_property
    def _metrics(self) -> dict[tuple[str, str], list[str]]:
        """The metrics that one walk feeds, by model and by the key of a walk that feeds none."""
        metrics: dict[tuple[str, str], set[str]] = defaultdict(set)
        for trial in self.study.trials:
            if trial.needs_scores:
                metrics[trial.model, self._score(trial).key].add(trial.choice.name)
        return {walk: sorted(names) for walk, names in metrics.items()}

    def _path(self, trial: Trial, result: Result) -> Iterator[tuple[str, Step]]:
        source, evaluation = self.models[trial.model], self.study.evaluation
        yield "evaluate_base", EvaluateStep.of(self.known, evaluation, source, trial.model)
        if evaluation.profile_options:
            yield "profile_base", ProfileStep.of(self.known, evaluation.profile_options, source, trial.model)
        if trial.heal and trial.step:  # it heals after each cut
            last = yield from _written("heal", TurnsStep.of(self.known, trial), result)
        else:
            removed = yield from self._chosen(trial, result)
            last = yield from _written("prune", PruneStep.of(self.known, trial, removed), result)
            if evaluation.pruned or not trial.heal:
                yield "evaluate_pruned", EvaluateStep.of(self.known, evaluation, *last)
            if trial.heal:
                last = yield from _written("heal", HealStep.of(self.known, trial, *last), result)
        if trial.heal:
            yield "evaluate_healed", EvaluateStep.of(self.known, evaluation, *last)
        if evaluation.profile_options:
            yield "profile", ProfileStep.of(self.known, evaluation.profile_options, *last)

    def _chosen(self, trial: Trial, result: Result) -> Generator[tuple[str, Step], None, Any]:
        """Yield the steps that choose layers, by role; return the layers that go."""
        score, values = None, None
        if trial.needs_scores:
            score = self._score(trial, self._metrics[trial.model, self._score(trial).key])
            yield "score", score
            values = digest(_values(result(score), trial))
        plan = PlanStep.of(self.known, trial, score, values)
        yield "plan", plan
        return result(plan)["removed"]


def _written(role: str, step: Step, result: Result) -> Generator[tuple[str, Step], None, Written]:
    """Yield a step that writes a checkpoint; return what that is known by and where it is."""
    yield role, step
    weights, shape, beside = (result(step)[f"{name}_sha256"] for name in ("weights", "shape", "beside"))
    return Contents(weights, shape, beside=beside), step.key


def _values(scores: Mapping[str, Any], trial: Trial) -> Any:
    """Return the scores by a trial's metric: of blocks, where it removes one and the metric scores those."""
    metric = trial.choice.metric
    blocks = scores["blocks"].get(metric) if trial.removes_window else None
    return scores["scores"][metric] if blocks is None else blocks


def sources(study: Study) -> list[str]:
    """Return every text and folder that a study reads, each once."""
    return list(dict.fromkeys([*study.evaluation.sources, *texts(study)]))


def texts(study: Study) -> list[str]:
    """Return every text that the steps before evaluation read, each once."""
    given: list[Any] = []
    for trial in study.trials:
        given += [text.source for text in (trial.calibration, trial.repair) if text]
        given += [dict(trial.heal.options)["data"]] if trial.heal else []
    return list(dict.fromkeys(source.name for each in given for source in Text(each).sources))


def foreseen(step: Step) -> Mapping[str, Any]:
    """Return a result of which nothing is known but that it is this step's."""
    unknown = {metric: [step.key, metric] for metric in step.arguments.get("metrics", ())}
    contents = Contents(step.key, step.key)
    return {"scores": unknown, "blocks": unknown, "removed": [step.key], **contents.result}


class Paths:
    """The steps of each trial as far as they are known; found again only where one of them has got a result since."""

    def __init__(self, graph: Graph, results: Results) -> None:
        self._graph, self._results = graph, results
        self._steps: dict[str, tuple[dict[str, Step], dict[str, Step]]] = {}  # by trial

    def steps(self, trial: Trial) -> dict[str, Step]:
        """Return the steps of the trial that are known from the results there are."""
        return self._steps_of(trial)[0]

    def at_most(self) -> dict[str, str]:
        """Return the kind of each step that there will be at most, by its key."""
        trial_steps = (self._steps_of(trial)[1] for trial in self._graph.study.trials)
        return {step.key: step.kind for steps in trial_steps for step in steps.values()}

    def arrived(self, key: str) -> None:
        """Note that a step has a result: further steps of its trials can be known."""
        for trial, (known, _) in list(self._steps.items()):
            if any(step.key == key for step in known.values()):
                del self._steps[trial]

    def _steps_of(self, trial: Trial) -> tuple[dict[str, Step], dict[str, Step]]:
        if trial.id not in self._steps:
            self._steps[trial.id] = self._graph.steps(trial, self._results)
        return self._steps[trial.id]
