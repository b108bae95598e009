"""The recipe of a shrink as a trial of a study: how layers are chosen, how many go, whether and how the rest heals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortstack.errors import InputError, parameter
from shortstack.healing.options import task_of
from shortstack.healing.recipes import read_recipe
from shortstack.planning import Choice
from shortstack.planning.layer_sets import check_choice, fewest
from shortstack.study.references import expanded, open_model
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.trial import ONE_SHOT


def recipe_trial(model: str, options: ShrinkOptions) -> dict[str, Any]:
    """The recipe as a trial of a study.

    Raises:
        InputError: the recipe asks for what a study cannot, or has no data to heal on.
        PlanError: nobody can tell how much goes.
    """
    recipe = read_recipe(options.recipe)
    plan, heal = recipe.plan.given, {**recipe.heal.given, **({"data": options.data} if options.data else {})}
    drop = _drop(model, options, plan.get("drop", "25%"))
    for name in ("keep_first", "keep_last"):
        if plan.get(name):
            where, fix = parameter("recipe", options.recipe), "name the layers in the recipe"
            raise InputError(where, expected=f"no {name}", found=str(plan[name]), fix=fix)
    if heal.get("max_steps"):
        where, fix = parameter("recipe", options.recipe), f"leave it out: {parameter('minutes')} says how long it heals"
        raise InputError(where, expected="no max_steps", found=str(heal["max_steps"]), fix=fix)
    if heal and not heal.get("data"):
        expected, fix = f"what the recipe {options.recipe} heals on", f"add {parameter('data', 'pydoc')}"
        raise InputError(parameter("data"), expected=expected, found="none", fix=fix)
    task_of(heal).method.check()
    step = heal.pop("step", None)
    heal.pop("seed", None)  # the study has one for all steps
    return {
        "metric": _metric(plan),
        "drop": drop,
        "strategy": f"step {step}" if step else ONE_SHOT,
        "repair": bool(plan.get("repair")),
        "heal": {"name": options.recipe, **heal} if heal else "none",
    }


def _drop(model: str, options: ShrinkOptions, usual: Any) -> str:
    """How much goes, as a study says it: where a size was asked for, as many layers as leave it whichever go."""
    if options.params is None and options.memory is None:
        check_choice(options.drop or usual, None)
        return str(options.drop or usual)
    choice = Choice(drop=options.drop, params=options.params, memory=options.memory)
    choice.check()
    sizes = open_model(str(expanded(model))).sizes
    light_first = sorted(range(len(sizes.layer_bytes)), key=sizes.layer_bytes.__getitem__)
    fits = choice.sized(sizes).fits
    assert fits  # noqa: S101  it is sized
    return str(len(fewest(light_first, len(light_first), fits)))


def _metric(plan: Mapping[str, Any]) -> str:
    """How a recipe's plan chooses layers, in the words of a study."""
    if plan.get("layers"):
        return f"layers {plan['layers']}"
    if plan.get("search"):
        return "search"
    if plan.get("strategy"):
        return f"{plan.get('metric', '')} {plan['strategy']}".strip()
    return f"{plan.get('metric', 'ppl')}{' block' if plan.get('block') else ''}"
