"""The last stage of shrink(): the verdict on a cut, why its layers went, and how to make it again."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.healing import Healing
from shortstack.machine.device import Compute
from shortstack.machine.formats import option_words, show_layers
from shortstack.machine.options import changed_options
from shortstack.planning import Plan
from shortstack.runs.records import ONE_SHOT
from shortstack.shrinking import reference
from shortstack.shrinking.card import RECIPE
from shortstack.shrinking.clock import Amounts
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.result import NO_HEALING, Candidate, Shrunk, Unpruned
from shortstack.shrinking.route import Route
from shortstack.shrinking.verdict import beside_others, verdict


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
) -> Shrunk:
    """Judge a cut and assemble the result."""
    last, base = made.measured.evaluation, unpruned.measured.evaluation
    collapse = last.collapse.against(base.collapse) if last.collapse and base.collapse else last.collapse
    last = replace(last, model=str(out), collapse=collapse)
    answers = reference.beside(unpruned.measured.answers, made.measured.answers)
    judged = verdict(base, last, answers)
    others = beside_others(last, made.checkpoint.weight_bytes, made.speed, unpruned.int8)
    if made.healing:
        others.append(_healed(made.healing, made.checkpoint.record["healing"]["samples"]))
    if made.left_out:
        advice = " More minutes would heal it." if NO_HEALING in made.left_out else ""
        others.append(f"Reduced to fit the minutes: {'; '.join(made.left_out)}.{advice}")
    return Shrunk(
        output=out,
        verdict=judged.decision,
        reasons=(*judged.reasons, *others),
        why=_why(route, made.plan, amounts.text),
        plan=made.plan,
        repair=made.repair,
        healing=made.healing and replace(made.healing, output=out),  # it was made in the folder of stages
        base=base,
        last=last,
        answers=answers,
        speed=made.speed,
        int8=unpruned.int8,
        left_out=made.left_out,
        tried=made.tried,
        seconds=seconds,
        recipe=route.repeating(amounts, made.healing, drop=len(made.plan.removed), repaired=bool(made.repair)),
        command=_command(unpruned.checkpoint, options, out, compute=compute, heals=made.healing is not None),
    )


def _healed(healing: Healing, samples: int) -> str:
    said = f"Healing: {healing.history.steps} steps on {samples:,} samples"
    if not healing.greedy_kept:
        return f"{said}."
    before, now = (f"{share:.1%}" for share in healing.greedy_kept)
    return f"{said}; on held-out ones its top token is the unpruned model's {now} of the time ({before} before)."


def settings(route: Route, source: str, made: Candidate, *, amounts: Amounts, seed: int) -> dict[str, Any]:
    """Return how a cut was made, as a trial's settings."""
    heal = made.checkpoint.record["healing"] if made.healing else None
    text = asdict(amounts.calibration_text)
    return {
        "model": source,
        "metric": route.choice.strategy or route.choice.name,
        "drop": str(len(made.plan.removed)),
        "calibration": text,
        "strategy": ONE_SHOT,
        "repair": {**text, "samples": amounts.repair} if made.repair else None,
        "heal": heal and {"name": route.name, "method": heal["method"]["name"], **heal["data"]},
        "seed": seed,
    }


def _why(route: Route, plan: Plan, text: str) -> str:
    if not plan.compared:
        return f"The recipe {route.name} determines which layers are removed."
    if len(plan.compared) == 1:
        cut = f"The cut without layers {show_layers(plan.removed)}"
        return f"{cut} has the lowest {plan.compared_by}, on held-out windows of {text}."
    return (
        f"Of the {len(plan.compared)} cuts compared, the one without layers {show_layers(plan.removed)} has the lowest "
        f"{plan.compared_by}, on held-out windows of {text}: {min(plan.compared.values()):.4f} nats per token."
    )


def _command(source: Checkpoint, options: ShrinkOptions, out: Path, *, compute: Compute, heals: bool) -> str:
    """Return the command that repeats a shrink with its own recipe, which has all that is left out here."""
    stated = {"minutes", "min_quality", "text", "samples", *(() if heals else ("data",))}
    again = {name: value for name, value in changed_options(options).items() if name not in stated}
    again |= {**changed_options(compute), "recipe": str(out / RECIPE)}
    again |= {"trust_remote_code": True} if source.trust_remote_code else {}
    return shlex.join(["shortstack", "shrink", source.source, *option_words(again), "-o", f"{out}-again"])
