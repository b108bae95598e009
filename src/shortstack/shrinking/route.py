"""A recipe and the options of shrink as what is done: how layers are chosen, whether the cut is repaired, how it heals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import yaml

from shortstack.errors import InputError
from shortstack.healing import Healing, HealingTask, IterativeSchedule
from shortstack.healing.recipes import ON_TEXT, PLANNED, Recipe, read_recipe
from shortstack.healing.task import task_of
from shortstack.planning import Choice
from shortstack.shrinking.clock import Amounts
from shortstack.shrinking.options import GOALS, ShrinkOptions


@dataclass(frozen=True)
class Route:
    """The work of a shrink. choice: how layers are chosen, and how many go; healing: None without healing; turns: None
    unless cuts and healing take turns.

    recipe: numbers that stand in it are taken as they are, whatever the clock says.
    """

    name: str
    choice: Choice
    repair: bool
    healing: HealingTask | None
    turns: IterativeSchedule | None
    recipe: Recipe

    @classmethod
    def of(cls, options: ShrinkOptions, drop: str | None = None) -> Route:
        """Plan the route. drop: how much goes, where that is said elsewhere than in the options."""
        recipe = read_recipe(options.recipe)
        choice = _choice(recipe, options, drop)
        healing = _healing(recipe, options)
        step = recipe.heal.given.get("step")
        turns = None
        if step:
            turns = IterativeSchedule(
                str(choice.drop), step, choice.name, options.text, options.samples, options.length
            )
        return cls(options.recipe, choice, recipe.plan.repair, healing, turns, recipe)

    def amounts(self, fitting: Amounts) -> Amounts:
        """Return the numbers that fit the time, but for those that the recipe states."""
        given, called = self.recipe.plan.given, {"samples": "windows", "repair_samples": "repair"}
        known = (*ON_TEXT, "finalists", "repair_samples")
        return replace(
            fitting, **{called.get(name, name): given[name] for name in known if given.get(name) is not None}
        )

    def repeating(self, amounts: Amounts, healing: Healing | None, *, drop: int, repaired: bool) -> str:
        """Write the recipe with all numbers, so that it needs no clock; without what there was no time for."""
        plan: dict[str, Any] = {"text": amounts.text, "samples": amounts.windows, "length": amounts.length}
        plan |= {} if self.recipe.plan.given.get("layers") else {"drop": drop}
        plan |= {"finalists": amounts.finalists} if self.choice.how.finalists else {}
        plan |= {"repair_samples": amounts.repair} if repaired else {"repair": False} if self.repair else {}
        used = {name: value for name, value in ((healing and healing.repeat) or {}).items() if value is not None}
        heal = {**self.recipe.heal.given, **used} if healing else {}
        parts = {"title": self.recipe.title, "plan": {**self.recipe.plan.given, **plan}, "heal": heal}
        return str(yaml.safe_dump({name: part for name, part in parts.items() if part}, sort_keys=False))

    @property
    def timed(self) -> bool:
        """Whether healing goes by the clock: a recipe may say how many steps it takes."""
        return self.healing is not None and self.healing.schedule.max_steps is None

    def dropping(self, drop: str) -> Route:
        """Return the same route, where so much goes."""
        return replace(self, choice=replace(self.choice, drop=drop, params=None, memory=None))


def _choice(recipe: Recipe, options: ShrinkOptions, drop: str | None) -> Choice:
    plan: dict[str, Any] = {name: value for name, value in recipe.plan.given.items() if name in PLANNED}
    goals = {name: getattr(options, name) for name in GOALS if getattr(options, name) is not None}
    if drop is not None and goals:
        conflict, expected = f"{drop} as well", "one goal for each output"
        raise InputError(conflict, expected=expected, fix="leave it out", option=next(iter(goals)))
    if drop is not None:
        goals = {"drop": drop}
    if plan.get("layers") and goals:
        goal = next(iter(goals))
        conflict, expected = f"{options.recipe}, which names them", f"a recipe that chooses layers, beside {goal}"
        raise InputError(conflict, expected=expected, fix=f"leave {goal} out, or take another", option="recipe")
    goals.pop("min_quality", None)  # trials say how much goes
    if goals:
        plan.pop("drop", None)
    elif not plan.get("layers"):
        goals = {"drop": str(plan.pop("drop", "25%"))}
    choice = Choice(**plan, **goals)
    choice.check()
    return choice


def _healing(recipe: Recipe, options: ShrinkOptions) -> HealingTask | None:
    heal = {**recipe.heal.given, **({"data": options.data} if options.data else {})}
    heal.pop("step", None)
    if not heal:
        return None
    if not heal.get("data"):
        expected, fix = f"what the recipe {options.recipe} heals on", "name some, such as pydoc"
        raise InputError("none", expected=expected, fix=fix, option="data")
    task = task_of(heal)
    task.method.check()
    return task
