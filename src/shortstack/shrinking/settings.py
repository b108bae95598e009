"""A recipe and the options of shrink() together: how layers are chosen, whether the cut is repaired, how it heals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from shortstack.data import Text
from shortstack.data.text import MIX
from shortstack.errors import InputError
from shortstack.healing import HealingConfig
from shortstack.healing.methods import config_of
from shortstack.healing.recipes import Recipe, read_recipe
from shortstack.machine.device import Compute
from shortstack.machine.options import given
from shortstack.planning import Selection
from shortstack.shrinking.budget import Budget
from shortstack.shrinking.options import GOALS, MINUTES, ShrinkOptions
from shortstack.shrinking.result import Candidate

RECIPE = "recipe.yaml"  # beside the weights
AMOUNTS = {
    "num_samples": "windows",
    "seq_length": "length",
    "candidates": "candidates",
    "repair_samples": "repair_windows",
}


@dataclass(frozen=True)
class Settings:
    """The work of a shrink. calibration: text to choose on; repair_text: None for that text and what heals.

    stated: amounts, by their names in Budget, that the recipe or the options state, which the time limit does not reduce.
    """

    recipe: Recipe
    selection: Selection
    calibration: Text
    repair: bool
    repair_text: Text | None
    healing: HealingConfig | None
    stated: Mapping[str, int]

    @classmethod
    def of(cls, options: ShrinkOptions) -> Settings:
        """Read the recipe, and put the options in the place of what it says."""
        recipe = read_recipe(options.recipe)
        if recipe.heal.layers_per_round:
            raise InputError(f"{options.recipe} prunes in rounds; run it with `shortstack heal`", option="recipe")
        plan, repair_text = given_plan(recipe), recipe.plan.repair_data
        stated = {ours: plan[name] for name, ours in AMOUNTS.items() if plan.get(name) is not None}
        if options.num_samples:
            stated["windows"] = options.num_samples
        text = options.calibration_data or recipe.plan.calibration_data or MIX
        return cls(
            recipe,
            _selection(plan, options),
            Text(text, length=stated.get("length", Budget.length)),
            recipe.plan.repair,
            Text(repair_text) if repair_text else None,
            _healing(recipe, options),
            stated,
        )

    @property
    def complete(self) -> bool:
        """Whether every amount is stated, as in the recipe beside a shrink's output: then there is no time limit."""
        needed = {"windows", "length", *(("repair_windows",) if self.repair else ())}
        return needed <= self.stated.keys() and not self.heals_by_clock

    @property
    def heals_by_clock(self) -> bool:
        return self.healing is not None and self.healing.max_steps is None

    @property
    def data_name(self) -> str:
        return self.healing.text.name if self.healing else ""

    def seconds(self, options: ShrinkOptions) -> float:
        """Return the time limit in seconds."""
        return 60 * (options.minutes or (math.inf if self.complete else MINUTES))

    def dropping(self, layers: int) -> Settings:
        """Return the same settings for this number of layers to remove."""
        return replace(self, selection=replace(self.selection, drop=layers, target_params=None, target_size=None))

    def healing_of(self, compute: Compute) -> HealingConfig | None:
        """Return the settings of healing on the run's device and with its seed, unless the recipe states one."""
        seed: dict[str, Any] = {} if "seed" in given(self.recipe.heal) else {"seed": compute.seed}
        return self.healing and replace(self.healing, device=compute.device, **seed)

    def repeating(self, budget: Budget, calibration: Text, repair: Text | None, made: Candidate) -> str:
        """Return a recipe with every amount that was used, as YAML."""
        plan = given_plan(self.recipe) | {
            "calibration_data": _weights(calibration),
            "num_samples": budget.windows,
            "seq_length": budget.length,
            "repair": bool(made.checkpoint.record.get("repair")),
        }
        if self.selection.how.repairs:
            plan["candidates"] = budget.candidates
        if not plan.get("layers"):
            plan["drop"] = len(made.plan.removed)
        if plan["repair"] and repair:
            plan |= {"repair_data": _weights(repair), "repair_samples": budget.repair_windows}
        heal: dict[str, Any] = {}
        if made.healing and self.healing:
            steps = {"max_samples": made.healing.samples, "max_steps": made.healing.history.steps}
            steps = steps if self.heals_by_clock else {}
            heal = given(self.recipe.heal) | {"data": _weights(self.healing.text)} | steps
        parts = {"title": "amounts of a shrink", "plan": plan, "heal": heal}
        return str(yaml.safe_dump({name: part for name, part in parts.items() if part}, sort_keys=False))


def given_plan(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says of plan, without defaults."""
    return {name: value for name, value in given(recipe.plan).items() if value is not None}


def _weights(text: Text) -> dict[str, float]:
    return {source.name: source.weight for source in text.sources}


def _selection(plan: Mapping[str, Any], options: ShrinkOptions) -> Selection:
    """Return how layers are chosen: as the recipe says, for the goal of the options."""
    goals = {name: getattr(options, name) for name in GOALS if getattr(options, name) is not None}
    values = {field.name: plan[field.name] for field in fields(Selection) if field.name in plan}
    if plan.get("layers") and goals:
        raise InputError(f"{options.recipe} names the layers; leave {next(iter(goals))} out", option="recipe")
    if goals or not plan.get("layers"):
        values["drop"] = None if goals else values.get("drop") or "25%"
    values |= {name: value for name, value in goals.items() if name != "min_quality"}
    return Selection(**values)


def _healing(recipe: Recipe, options: ShrinkOptions) -> HealingConfig | None:
    values = given(recipe.heal) | ({"data": options.data} if options.data else {})
    if not values:
        return None
    if values.get("minutes"):
        raise InputError(
            f"{options.recipe} states minutes of healing; shrink's own are for all of its work", option="recipe"
        )
    if not values.get("data"):
        raise InputError(f"{options.recipe} heals on no data of its own; give some, such as pydoc", option="data")
    return config_of(values)
