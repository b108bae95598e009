"""The result of shrink(), and the verdict: keep the pruned model or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.evaluation import EvalResult
from shortstack.evaluation.paired import Estimate, ratio
from shortstack.evaluation.probes import REPETITION
from shortstack.healing import Healing
from shortstack.machine.files import to_jsonable
from shortstack.machine.tables import Table, Tabled
from shortstack.planning import Plan
from shortstack.profiling.speed import Ratio
from shortstack.shrinking.budget import Budget
from shortstack.shrinking.retention import TriedCut, tasks_right

# Shares of the base model's mean over the probes, and multiples of its perplexity, that bound the verdict (docs/shrink.md).
KEPT, LOST = 0.8, 0.5
NEAR, FAR = 1.5, 3.0
VARIED = 0.25  # of the base model's share of 4-grams that are no repetition, at least, in free writing
SURE = 1.645  # standard errors: a normal value is above as many less in 95 % of cases
WORDS = {True: "Keep it.", False: "Do not keep it.", None: "Try it on your own tasks before you keep it."}


@dataclass(frozen=True)
class Speed:
    """Speed of the pruned model as a ratio to the base model's; reason: why nothing was timed."""

    prefill: Ratio | None = None
    decode: Ratio | None = None
    reason: str = ""


@dataclass(frozen=True)
class Measured:
    """An evaluation, answers to prompts, the measures that were skipped, and the seconds that all took."""

    evaluation: EvalResult
    answers: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """Keep the pruned model or not; None where the numbers decide neither.

    text, perplexity: the text with the largest ratio of perplexities, and that ratio. probes: share of the base model's mean
    that is kept. answers: whether it answers the prompts that the base model answers, not all alike. repetition: shares of
    repeated 4-grams in free writing, of the base and of the pruned model.
    """

    keep: bool | None
    text: str
    perplexity: float
    probes: Estimate | None
    answers: bool
    repetition: tuple[float, float] | None = None

    @property
    def repeats(self) -> bool:
        """Whether free writing repeats itself as the base model's does not."""
        return self.repetition is not None and 1 - self.repetition[1] < VARIED * (1 - self.repetition[0])

    @property
    def decision(self) -> str:
        return WORDS[self.keep]


def judge(base: EvalResult, pruned: EvalResult, answers: Sequence[Mapping[str, str]] = ()) -> Verdict:
    """Judge a pruned model by both evaluations and by what both models answer.

    Keep: perplexity at most NEAR times the base model's on each text, and surely KEPT of its probes. Do not keep: beyond
    FAR, surely below LOST, no answers, or repetitive writing. Sure is a one-sided 95 % bound; without probes it is unclear.
    """
    ratios = {name: _ratio(base, pruned, name) for name in pruned.perplexity}
    text = max(ratios, key=ratios.__getitem__)
    before, after = base.probes_mean, pruned.probes_mean
    probes = ratio(before, after) if before and after and before.value else None
    low, high = (probes.value - SURE * probes.error, probes.value + SURE * probes.error) if probes else (0.0, 1.0)
    found = Verdict(None, text, ratios[text], probes, _answers(answers), _repetition(base, pruned))
    if not found.answers or found.repeats or ratios[text] > FAR or high < LOST:
        return replace(found, keep=False)
    return replace(found, keep=True if ratios[text] <= NEAR and low >= KEPT else None)


def _repetition(base: EvalResult, pruned: EvalResult) -> tuple[float, float] | None:
    both = [result.probes[REPETITION].value for result in (base, pruned) if REPETITION in result.probes]
    return (both[0], both[1]) if len(both) == 2 else None


def _ratio(base: EvalResult, pruned: EvalResult, text: str) -> float:
    times = pruned.perplexity[text].value / base.perplexity[text].value
    return math.inf if math.isnan(times) else times


def _answers(answers: Sequence[Mapping[str, str]]) -> bool:
    """Return whether the pruned model answers what the base model answers, with as many different answers as prompts."""
    both = [(said["base"].strip(), said["pruned"].strip()) for said in answers if {"base", "pruned"} <= said.keys()]
    silent = any(theirs and not ours for theirs, ours in both)
    alike = len({ours for _, ours in both}) < min(len({theirs for theirs, _ in both}), 2)
    return not (silent or alike)


@dataclass(frozen=True)
class Candidate:
    """A pruned model with its plan, healing and evaluation. skipped: stages and measures for which there was no time."""

    checkpoint: Checkpoint
    plan: Plan
    healing: Healing | None
    measured: Measured
    speed: Speed
    skipped: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class ShrinkResult(Tabled):
    """Result of shrink(): both models' evaluations, how the pruned one was made, and the verdict.

    base, pruned: evaluations. answers: to prompts, by model. budget, wanted: amounts used, and those without a time limit.
    skipped: stages for which there was no time. tried: the cuts tried for min_quality. notes: on data that was too short.
    recipe: YAML with every number, which `command` repeats without a time limit.
    """

    output: Path
    verdict: Verdict
    plan: Plan
    repair: Mapping[str, Any]
    healing: Healing | None
    base: EvalResult
    pruned: EvalResult
    answers: Sequence[Mapping[str, str]]
    speed: Speed
    budget: Budget
    wanted: Budget
    skipped: tuple[str, ...]
    tried: tuple[TriedCut, ...]
    notes: tuple[str, ...]
    seconds: float
    recipe: str
    command: str

    def table(self) -> Table:
        """Return a table of both models' results."""
        return self.pruned.compare_to(self.base).table()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The numbers behind the verdict and what limits them, a sentence each."""
        return tuple(self._reasons())

    def _reasons(self) -> Iterator[str]:
        verdict, speed = self.verdict, self.speed
        if not verdict.answers:
            yield "It does not answer prompts that the base model answers."
        if verdict.repetition and verdict.repeats:
            own, repeated = verdict.repetition
            yield f"Its free writing repeats itself: {repeated:.0%} of the 4-grams, base model {own:.0%}."
        yield f"Perplexity on {verdict.text} is {verdict.perplexity:.2f} times the base model's."
        base, pruned = self.base, self.pruned
        means = {"Probes": (base.probes_mean, pruned.probes_mean), "Tasks": (tasks_right(base), tasks_right(pruned))}
        for name, (before, after) in means.items():
            if before and after and before.value:
                yield f"{name}: {after} right, base model {before}: {ratio(before, after)} kept."
        if speed.decode:
            low, high = speed.decode.low, speed.decode.high
            yield f"Decoding is {speed.decode.value:.2f} times as fast as the base model's ({low:.2f} to {high:.2f})."
        if self.healing and not self.healing.history.best:
            yield "Healing lowered no held-out loss: the weights are those before it."
        for stage in self.skipped:
            yield f"No time was left for {stage}."
        reduced = self.budget.reduced(self.wanted).items()
        if amounts := [f"{name.replace('_', ' ')} {used} of {most}" for name, (used, most) in reduced]:
            yield f"Time limit: {', '.join(amounts)}."
        yield from self.notes

    def steps(self) -> dict[str, dict[str, Any]]:
        """Return the result of each step by its role, as a study's trials have them."""
        plan = self.plan.to_dict()
        results = {"evaluate_base": self.base.to_dict(), "plan": plan, "prune": {**plan, "repair": self.repair}}
        if self.healing is None:
            return {**results, "evaluate_pruned": self.pruned.to_dict()}
        return {**results, "heal": self.healing.to_dict(), "evaluate_healed": self.pruned.to_dict()}

    def to_dict(self) -> dict[str, Any]:
        names = ("output", "reasons", "answers", "speed", "budget", "wanted", "skipped", "tried", "seconds", "command")
        data = {name: to_jsonable(getattr(self, name)) for name in names}
        verdict = {"verdict": self.verdict.decision, "keep": self.verdict.keep}
        return {**data, **verdict, "candidates": dict(self.plan.candidates or {}), "steps": self.steps()}
