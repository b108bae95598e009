"""Trials as steps that share work. A step is known by what it computes and on what, so what two trials share has one key.

A key is the digest of a step's kind, its arguments, and the contents of its inputs: a checkpoint counts by the digest of its
weights, a plan by its layers, scores by their values, a text by its words. Two metrics that choose the same layers share
everything from there on. So a step's key is known only once the steps before it have results: `steps` goes as far down a
trial as they reach.

Everything here is pure. `foreseen` gives results that nothing is known of, which makes the same function count a study's
steps before it runs: at most so many, since plans may turn out to be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shortstack.machine.files import digest
from shortstack.study.grid import Speeds, Study
from shortstack.study.trial import Trial

# Raised by hand when what a kind computes changes, so that older results are not taken for new ones.
CODES = {"score": 1, "plan": 1, "prune": 1, "heal": 1, "turns": 1, "evaluate": 1, "profile": 1}
WRITES_WEIGHTS = ("prune", "heal", "turns")
Results = Callable[["Step"], Mapping[str, Any] | None]
Made = tuple["Contents", str]  # what a checkpoint is known by, and where it is


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is known by. layers: None where nobody knows yet."""

    weights: str
    shape: str
    layers: int | None = None

    @property
    def identity(self) -> dict[str, str]:
        return {"weights": self.weights, "shape": self.shape}


@dataclass(frozen=True)
class Step:
    """One call of a public verb. reads: where its inputs are, a model's name or the key of a step; no part of its key."""

    kind: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, Any]
    reads: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        known = {"kind": self.kind, "code": CODES[self.kind], "arguments": self.arguments, "inputs": self.inputs}
        return digest(known)


@dataclass(frozen=True)
class Graph:
    """A study's steps. models: what each source model is known by; texts: what each text is."""

    study: Study
    models: Mapping[str, Contents]
    texts: Mapping[str, str]

    def steps(self, trial: Trial, results: Results) -> dict[str, Step]:
        """The steps of a trial whose keys are known, by role. Without a step that lacks a result, they are all of them."""
        return dict(self._path(trial, results))

    def _path(self, trial: Trial, results: Results) -> Iterator[tuple[str, Step]]:
        source, pruned = self.models[trial.model], self.study.evaluation.pruned
        yield from self._judged("base", source, trial.model)
        if trial.in_turns:
            last = yield from self._made("heal", self._turns(trial), results)
        else:
            removed = yield from self._chosen(trial, results)
            last = (yield from self._made("prune", self._prune(trial, removed), results)) if removed else None
            if last and (pruned or not trial.heal):
                yield "evaluate_pruned", self._evaluate(*last)
            if last and trial.heal:
                last = yield from self._made("heal", self._heal(trial, *last), results)
        if last and trial.heal:
            yield "evaluate_healed", self._evaluate(*last)
        if last and self.study.evaluation.profile:
            yield "profile", self._profile(*last)

    def _judged(self, what: str, contents: Contents, place: str) -> Iterator[tuple[str, Step]]:
        yield f"evaluate_{what}", self._evaluate(contents, place)
        if self.study.evaluation.profile:
            yield f"profile_{what}", self._profile(contents, place)

    def _made(self, role: str, step: Step, results: Results) -> Generator[tuple[str, Step], None, Made | None]:
        """A step that writes a checkpoint; returns what that is known by and where it is, once there is one."""
        yield role, step
        found = results(step)
        return (Contents(found["weights_sha256"], found["shape_sha256"]), step.key) if found else None

    def _chosen(self, trial: Trial, results: Results) -> Generator[tuple[str, Step], None, Any]:
        """Score and plan; returns the layers to remove, once they are known."""
        values, score = None, None
        if trial.choice.scored and trial.step is None:
            score = self._score(trial)
            yield "score", score
            found = results(score)
            if not found:
                return None
            values = found["window_scores" if trial.choice.block else "scores"].get(trial.choice.metric)
            values = digest(found["scores"][trial.choice.metric] if values is None else values)
        plan = self._plan(trial, values, score)
        yield "plan", plan
        planned = results(plan)
        return planned and planned["removed"]

    def _score(self, trial: Trial) -> Step:
        """One walk for every metric that the study wants of the same model and text."""
        window, calibration = self._walk(trial)[2:4]
        arguments = {
            "metrics": self._metrics[self._walk(trial)],
            "window": window,
            **self._looking(trial),
            "dtype": self.study.compute.dtype,
        }
        text = {"text": self.texts[calibration[0]]} if calibration else {}
        return Step(
            "score",
            arguments,
            {"model": self.models[trial.model].identity, **text},
            {"model": trial.model},
        )

    def _looking(self, trial: Trial) -> dict[str, Any]:
        """The text that a choice of layers looks at, and the seed."""
        if trial.calibration is None:
            return {"text": None, "seed": trial.choosing_seed if trial.choice.seeded else 0}
        return {**trial.calibration.model_dump(), "seed": trial.choosing_seed}

    def _walk(self, trial: Trial) -> tuple[Any, ...]:
        """What trials have in common that are scored together."""
        looking = self._looking(trial)
        text = (looking["text"], looking["samples"], looking["length"]) if trial.calibration else None
        window = self._amount(trial) if trial.choice.block else None
        return trial.model, looking["seed"], window, text

    def _amount(self, trial: Trial) -> int | str:
        layers = self.models[trial.model].layers
        return trial.drop or "" if layers is None else trial.amount(layers)

    @cached_property
    def _metrics(self) -> dict[tuple[Any, ...], list[str]]:
        """For each walk the metrics that are fed by it."""
        found: dict[tuple[Any, ...], set[str]] = {}
        for trial in self.study.trials:
            if trial.choice.scored and trial.step is None:
                found.setdefault(self._walk(trial), set()).add(str(trial.choice.metric))
        return {walk: sorted(metrics) for walk, metrics in found.items()}

    def _plan(self, trial: Trial, values: str | None, score: Step | None) -> Step:
        choice, model = trial.choice, self.models[trial.model].identity
        arguments: dict[str, Any] = {
            "metric": choice.metric,
            "block": choice.block,
            "layers": choice.layers,
            "drop": trial.drop,
            "step": trial.step,
        }
        if values is not None and score:
            return Step(
                "plan", arguments, {"model": model, "values": values}, {"model": trial.model, "score": score.key}
            )
        arguments |= self._looking(trial)
        if trial.calibration is None:
            return Step("plan", arguments, {"model": model}, {"model": trial.model})
        arguments |= {"dtype": self.study.compute.dtype}
        inputs = {"model": model, "text": self.texts[trial.calibration.text]}
        return Step("plan", arguments, inputs, {"model": trial.model})

    def _prune(self, trial: Trial, removed: Any) -> Step:
        arguments: dict[str, Any] = {"removed": removed, "repair": None}
        inputs: dict[str, Any] = {"model": self.models[trial.model].identity}
        if trial.repair:
            repair = {**trial.repair.model_dump(), "seed": trial.seed, "dtype": self.study.compute.dtype}
            arguments["repair"], inputs["text"] = repair, self.texts[trial.repair.text]
        return Step("prune", arguments, inputs, {"model": trial.model})

    def _heal(self, trial: Trial, contents: Contents, place: str) -> Step:
        arguments = self._healing(trial)
        inputs = {"checkpoint": contents.identity, "data": self.texts[arguments["data"]]}
        reads = {"checkpoint": place}
        if taught(arguments):
            inputs["teacher"], reads["teacher"] = self.models[trial.model].identity, trial.model
        return Step("heal", arguments, inputs, reads)

    def _turns(self, trial: Trial) -> Step:
        arguments = {
            "turns": {"metric": trial.metric, "drop": trial.drop, "step": trial.step, **self._looking(trial)},
            **self._healing(trial),
        }
        model = self.models[trial.model].identity
        inputs = {"model": model, "data": self.texts[arguments["data"]]}
        if trial.calibration:
            inputs["text"] = self.texts[trial.calibration.text]
        reads = {"model": trial.model} | ({"teacher": trial.model} if taught(arguments) else {})
        return Step("turns", arguments, inputs, reads)

    def _healing(self, trial: Trial) -> dict[str, Any]:
        assert trial.heal  # noqa: S101  the caller has looked
        return trial.heal.arguments(trial.seed)

    def _evaluate(self, contents: Contents, place: str) -> Step:
        judging = self.study.evaluation.model_dump(mode="json", exclude={"pruned", "profile"})
        arguments = {**judging, "dtype": self.study.compute.dtype}
        sources = [*judging["perplexity"], *(judging[name] for name in ("data_dir", "include") if judging[name])]
        inputs = {"checkpoint": contents.identity, "texts": {source: self.texts[source] for source in sources}}
        return Step("evaluate", arguments, inputs, {"checkpoint": place})

    def _profile(self, contents: Contents, place: str) -> Step:
        """Known by the shapes alone: cuts of one shape are equally fast."""
        wanted = self.study.evaluation.profile
        speeds = Speeds() if wanted is True else wanted
        assert isinstance(speeds, Speeds)  # noqa: S101  the caller has looked
        arguments = {**speeds.model_dump(mode="json"), "dtype": self.study.compute.dtype}
        return Step("profile", arguments, {"shape": contents.shape}, {"checkpoint": place})


def taught(healing: Mapping[str, Any]) -> bool:
    """Whether options of heal want a teacher: the unpruned model."""
    return healing["loss"] == "distill" or bool(healing["self_generate"])


def sources(study: Study) -> list[str]:
    """Every text and folder that a study reads, each once."""
    found: list[str | None] = [*study.evaluation.perplexity, study.evaluation.data_dir, study.evaluation.include]
    for trial in study.trials:
        found += [
            trial.calibration.text if trial.calibration else None,
            trial.repair.text if trial.repair else None,
            dict(trial.heal.options)["data"] if trial.heal else None,
        ]
    return list(dict.fromkeys(source for source in found if source))


def foreseen(step: Step) -> Mapping[str, Any]:
    """A result of which nothing is known but that it is this step's."""
    unknown = {metric: [step.key, metric] for metric in step.arguments.get("metrics", ())}
    return {
        "scores": unknown,
        "window_scores": unknown,
        "removed": [step.key],
        "weights_sha256": step.key,
        "shape_sha256": step.key,
    }
