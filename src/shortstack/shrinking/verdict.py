"""Keep it or not: what a shortened model keeps, its speed; and how to make it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.data.mixture import parse_sources
from shortstack.evaluation import EvalResult
from shortstack.evaluation.probes import REPETITION
from shortstack.machine.device import Compute
from shortstack.machine.formats import option_words, show_layers
from shortstack.machine.options import changed_options
from shortstack.planning import Plan
from shortstack.shrinking import reference
from shortstack.shrinking.card import RECIPE
from shortstack.shrinking.clock import Amounts
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.reference import Speed
from shortstack.shrinking.result import NO_HEALING, Candidate, Shrunk, Unpruned
from shortstack.shrinking.retention import Share, probes_right, ratio, share_tasks, tasks_right
from shortstack.shrinking.route import Route

# Shares of the unpruned model's mean over the probes, and multiples of its perplexity, between which nobody but its
# user can say. docs/shrink.md names them.
KEPT, LOST = 0.8, 0.5
NEAR, FAR = 1.5, 3.0
LEAST_NEW = 0.25  # of the 4-grams that a text of the base model has not had before
SURE = 1.645  # standard errors: a normal value is above as many less in 95 % of cases
NEEDED = (
    f"For a clear yes, perplexity on each text must be at most {NEAR} times the unpruned model's, and {KEPT:.0%} of its "
    "generation probes must be kept with 95% confidence."
)
WORDS = {True: "Keep it.", False: "Do not keep it.", None: "Try it on your own tasks before you keep it."}


@dataclass(frozen=True)
class Verdict:
    """keep: None where the numbers lie between. reasons: the sentences with the numbers."""

    keep: bool | None
    reasons: tuple[str, ...]

    @property
    def decision(self) -> str:
        return WORDS[self.keep]


def verdict(base: EvalResult, last: EvalResult, answers: Sequence[Mapping[str, str]] = ()) -> Verdict:
    """Judge by the evaluations of the unpruned model and of the shortened one, and by what both answer to prompts.

    It is kept where it does not repeat itself, answers, surely has KEPT of what the unpruned model has right of the probes,
    and at most NEAR times its perplexity on each text; and not where perplexity is beyond FAR, the probes are surely below
    LOST, or it does not answer. Sure is 95 %, by their standard error. Without probes nothing says to keep it.
    """
    text, times = max(((text, _times(base, last, text)) for text in last.perplexity), key=lambda pair: pair[1])
    reasons = [f"Perplexity on {text} is {times:.2f} times the unpruned model's."]
    least, most = 0.0, 1.0  # of the probes' mean it surely has, and may have
    before, after = probes_right(base), probes_right(last)
    if before and after and before.value:
        kept = ratio(before, after)
        least, most = kept.value - SURE * kept.stderr, kept.value + SURE * kept.stderr
        reasons.append(_right("Generation probes", before, after))
    asked = [name for name in share_tasks(last) if name in base.tasks]
    before, after = (tasks_right(each, asked) for each in (base, last))
    if before and after:  # what is kept of what guessing gets, too, would say little
        reasons.append(f"{', '.join(asked)}: {after} right, {before} before the cut.")
    broken = [*_unanswered(answers)][:1]
    repeated, before_repeated = (each.probes.get(REPETITION) for each in (last, base))
    if repeated and before_repeated and 1 - repeated.value < LEAST_NEW * (1 - before_repeated.value):
        broken.append(f"It repeats {repeated.value:.0%} of the 4-grams that it writes.")
    reasons = [*broken, *reasons]
    if broken or times > FAR or most < LOST:
        return Verdict(False, (*reasons, NEEDED))
    if times <= NEAR and least >= KEPT:
        return Verdict(True, tuple(reasons))
    return Verdict(None, (*reasons, NEEDED))


def _unanswered(answers: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Say what is wrong with answers, where those of the unpruned model are not: none, or one for all prompts."""
    both = [(said["unpruned"].strip(), said["shortened"].strip()) for said in answers if len(said) == 3]
    if any(theirs and not ours for theirs, ours in both):
        yield "It gives no answer to a prompt that the unpruned model answers."
    theirs, ours = ({*model_answers} for model_answers in zip(*both, strict=True)) if both else (set(), set())
    if len(ours) < len(theirs):
        yield "It gives one answer to prompts that the unpruned model answers differently."


def speed_told(speed: Speed) -> Iterator[str]:
    if speed.decode and speed.prefill:
        yield (
            f"Speed: decoding is {speed.decode.value:.2f} times as fast as the unpruned model's "
            f"({speed.decode.low:.2f} to {speed.decode.high:.2f}), prefill {speed.prefill.value:.2f} times."
        )


def _right(what: str, before: Share, after: Share) -> str:
    """Say how much is right of something, with standard errors, and which share of the unpruned model's that is."""
    return f"{what}: {after} right, {before} before the cut, so {ratio(before, after)} is kept."


def _times(base: EvalResult, last: EvalResult, text: str) -> float:
    """Compute how many times as large the perplexity is; infinitely where that is beyond all numbers."""
    times = last.perplexity[text].value / base.perplexity[text].value
    return math.inf if math.isnan(times) else times


# The last stage: the verdict on a cut, why its layers went, and how to make it again


def concluded(
    out: Path,
    route: Route,
    unpruned: Unpruned,
    made: Candidate,
    *,
    amounts: Amounts,
    options: ShrinkOptions,
    compute: Compute,
    seconds: float,
    notes: Sequence[str] = (),
) -> Shrunk:
    """Judge a cut and assemble the result. notes: sentences on what could not be done."""
    last, base = made.measured.evaluation, unpruned.measured.evaluation
    last = replace(last, model=str(out))
    answers = reference.beside(unpruned.measured.answers, made.measured.answers)
    judged = verdict(base, last, answers)
    unused = _unused(route, made, amounts) if options.data else ""
    others = [*speed_told(made.speed), *_healed(made), *notes, *_reduced(made)]
    return Shrunk(
        output=out,
        verdict=judged.decision,
        reasons=(*_unhealed(made, unused), *judged.reasons, *others),
        why=_why(route, made.plan, amounts.text),
        plan=made.plan,
        repair=made.repair,
        healing=made.healing and replace(made.healing, output=out),  # it was made in the folder of stages
        base=base,
        last=last,
        answers=answers,
        speed=made.speed,
        left_out=made.left_out,
        tried=made.tried,
        seconds=seconds,
        recipe=route.repeating(amounts, made.healing, drop=len(made.plan.removed), repaired=bool(made.repair)),
        command=_command(unpruned.checkpoint, options, out, compute=compute),
    )


def _unused(route: Route, made: Candidate, amounts: Amounts) -> str:
    """Name the data that nothing was made of where nothing healed: layers may be chosen on some, and the cut repaired."""
    texts = [amounts.text] * route.chooses_on_text + [amounts.repair_text] * bool(made.repair)
    used = {each.source for text in texts for each in parse_sources(text)}
    return ", ".join(each.source for each in route.healed_on if each.source not in used)


def _unhealed(made: Candidate, unused: str) -> Iterator[str]:
    if NO_HEALING in made.left_out:
        yield f"It was not healed: the minutes were too few{f'; the data {unused} was not used' if unused else ''}."


def _healed(made: Candidate) -> Iterator[str]:
    if made.healing:
        healing = (
            f"Healing: {made.healing.history.steps} steps, {made.healing.samples:,} samples including held-out ones"
        )
        if made.healing.history.best:
            yield " ".join([f"{healing}.", *made.healing.remarks])
        else:
            yield f"{healing}. No held-out loss was lower than before, so the weights are unchanged."


def _reduced(made: Candidate) -> Iterator[str]:
    if made.left_out:
        yield f"Reduced to fit the minutes: {'; '.join(made.left_out)}."


def settings(route: Route, source: str, made: Candidate, *, amounts: Amounts, seed: int) -> dict[str, Any]:
    """Return how a cut was made, as a trial's settings."""
    heal = made.checkpoint.record["healing"] if made.healing else None
    text = asdict(amounts.calibration_text)
    return {
        "model": source,
        "metric": route.choice.strategy or route.choice.by.name,
        "drop": str(len(made.plan.removed)),
        "calibration": text,
        "repair": {**text, "text": amounts.repair_text, "samples": amounts.repair} if made.repair else None,
        "heal": heal and {"name": route.name, "method": heal["method"]["name"], **heal["data"]},
        "seed": seed,
    }


def _why(route: Route, plan: Plan, text: str) -> str:
    if not plan.candidates:
        return f"The recipe {route.name} determines which layers are removed."
    if len(plan.candidates) == 1:
        cut = f"The cut without layers {show_layers(plan.removed)}"
        return f"{cut} has the lowest {plan.measure}, on held-out windows of {text}."
    return (
        f"Of the {len(plan.candidates)} cuts compared, the one without layers {show_layers(plan.removed)} has the lowest "
        f"{plan.measure}, on held-out windows of {text}: {min(plan.candidates.values()):.4f} nats per token."
    )


def _command(source: Checkpoint, options: ShrinkOptions, out: Path, *, compute: Compute) -> str:
    """Return the command that repeats a shrink with its own recipe, which has all that is left out here."""
    stated = {"minutes", "min_quality", "text", "samples", "data"}
    again = {name: value for name, value in changed_options(options).items() if name not in stated}
    again |= {**changed_options(compute), "recipe": str(out / RECIPE)}
    again |= {"trust_remote_code": True} if source.trust_remote_code else {}
    again |= {"revision": source.revision} if source.revision and not Path(source.source).exists() else {}
    return shlex.join(["shortstack", "shrink", source.source, *option_words(again), "-o", f"{out}-again"])
