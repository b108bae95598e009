"""A recipe and the options of shrink as what is done: how layers are chosen, whether the cut is repaired, how it heals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from shortstack.checkpoint import Checkpoint
from shortstack.data.mixture import Weighted, beside, parse_sources
from shortstack.data.sources import OWN
from shortstack.errors import InputError
from shortstack.healing import Healing, HealingTask
from shortstack.healing.recipes import ON_TEXT, PLANNED, Recipe, read_recipe
from shortstack.healing.task import task_of
from shortstack.machine.device import Compute
from shortstack.machine.options import changed_options, given
from shortstack.planning import Selection
from shortstack.shrinking.clock import Amounts
from shortstack.shrinking.options import GOALS, MINUTES, ShrinkOptions

# Of Amounts, where a recipe has another name.
FIELDS = {"samples": "windows", "candidates": "finalists", "repair_samples": "repair"}


@dataclass(frozen=True)
class Route:
    """The work of a shrink. choice: how layers are chosen, and how many go; healing: None without healing.

    given: numbers of the recipe's plan, which are taken as they are, whatever the clock says.
    """

    name: str
    choice: Selection
    repair: bool
    healing: HealingTask | None
    recipe: Recipe
    given: Mapping[str, Any]

    @classmethod
    def of(cls, options: ShrinkOptions, drop: str | None = None) -> Route:
        """Plan the route. drop: how much goes, where that is said elsewhere than in the options."""
        recipe = read_recipe(options.recipe)
        if recipe.heal.layers_per_round:
            expected, fix = "a recipe that cuts once", "heal with it: it removes layers in turns"
            raise InputError(options.recipe, expected=expected, fix=fix, option="recipe")
        choice, healing = _choice(recipe, options, drop), _healing(recipe, options)
        numbers, typed = (*ON_TEXT, "candidates", "repair_samples", "repair_text"), changed_options(options)
        given = {name: recipe.plan.given[name] for name in numbers if recipe.plan.given.get(name) is not None}
        given = {name: value for name, value in given.items() if name not in typed}
        if given.get("samples") == "all":
            expected, fix = "a number of calibration windows", "write one, such as 16, or give samples"
            raise InputError("all", expected=expected, fix=fix, option="recipe", where=options.recipe)
        return cls(options.recipe, choice, recipe.plan.repair, healing, recipe, given)

    def amounts(self, fitting: Amounts) -> Amounts:
        """Return the numbers that fit the time, but for those that the recipe states."""
        return replace(fitting, **{FIELDS.get(name, name): value for name, value in self.given.items()})

    def wanted(self, options: ShrinkOptions) -> Amounts:
        """Return as much as is chosen and repaired on where there is time enough.

        What heals repairs, too, beside the text that layers are chosen on.
        """
        typed: dict[str, Any] = {"windows": options.samples, "text": options.text}
        given = {name: value for name, value in typed.items() if value is not None}
        amounts = self.amounts(Amounts(length=options.length, **given))
        if "repair_text" in self.given:
            return amounts
        # Of its own text what is chosen on is enough: the model need not write for repair alone.
        read = [each.source for each in self.healed_on if each.source != OWN]
        return replace(amounts, repair_text=beside(amounts.text, read))

    @property
    def chooses_on_text(self) -> bool:
        """Whether the choice of layers depends on a text."""
        return self.choice.needs_text

    @property
    def healed_on(self) -> tuple[Weighted, ...]:
        """The sources of the data that heals."""
        return parse_sources(self.healing.data.source) if self.healing else ()

    @property
    def not_healed_on(self) -> str:
        """The texts without an end that the recipe heals on and the named data has none of, as `--data` names them."""
        own = str(self.recipe.heal.data or "").split(",")
        own = [part for part in own if part and any(each.endless for each in parse_sources(part))]
        return "" if any(each.endless for each in self.healed_on) else ",".join(own)

    def repeating(self, amounts: Amounts, healing: Healing | None, *, drop: int, repaired: bool) -> str:
        """Write the recipe with all numbers, so that it needs no clock; without what there was no time for."""
        plan: dict[str, Any] = {"text": amounts.text, "samples": amounts.windows, "length": amounts.length}
        plan |= {} if self.recipe.plan.given.get("layers") else {"drop": drop}
        plan |= {"candidates": amounts.finalists} if self.choice.how.repairs else {}
        on = {"repair_samples": amounts.repair, "repair_text": amounts.repair_text}
        plan |= on if repaired else {"repair": False} if self.repair else {}
        used = {name: value for name, value in ((healing and healing.repeat) or {}).items() if value is not None}
        heal: dict[str, Any] = {}
        if healing and self.healing:
            rate = {"learning_rate": healing.history.settings["learning_rate"]}
            heal = {**given(self.recipe.heal), **rate, "data": self.healing.data.source, **used}
        title = f"what the recipe {self.name} did in a shrink"
        parts = {"title": title, "plan": {**self.recipe.plan.given, **plan}, "heal": heal}
        return str(yaml.safe_dump({name: part for name, part in parts.items() if part}, sort_keys=False))

    @property
    def heals_by_clock(self) -> bool:
        """Whether healing goes by the clock: a recipe may say how many steps it takes."""
        return self.healing is not None and self.healing.schedule.max_steps is None

    @property
    def repeats(self) -> bool:
        """Whether the recipe has every number, as that beside a shrink's output: then no clock decides on any."""
        stated = {*ON_TEXT, *(("repair_samples",) if self.repair else ())}
        return stated <= self.given.keys() and not self.heals_by_clock

    def seconds(self, options: ShrinkOptions) -> float:
        """Return the time limit; a recipe that has every number has none, unless minutes are asked for."""
        return 60 * (options.minutes or (math.inf if self.repeats else MINUTES))

    def healing_of(self, unpruned: Checkpoint, compute: Compute) -> HealingTask:
        """Return the recipe's healing task with its teacher, if it needs one, and the run's device and seed.

        A seed that the recipe states stays.
        """
        assert self.healing  # noqa: S101  it is called where there is some
        schedule, teacher = self.healing.schedule, unpruned if self.healing.needs_teacher else None
        if "seed" not in given(self.recipe.heal):
            schedule = replace(schedule, seed=compute.seed)
        return replace(self.healing, schedule=schedule, teacher=teacher, compute=compute)

    def dropping(self, drop: str) -> Route:
        """Return the same route, where so much goes."""
        return replace(self, choice=replace(self.choice, drop=int(drop), target_params=None, target_size=None))


def _choice(recipe: Recipe, options: ShrinkOptions, drop: str | None) -> Selection:
    plan: dict[str, Any] = {name: value for name, value in recipe.plan.given.items() if name in PLANNED}
    goals = {name: getattr(options, name) for name in GOALS if getattr(options, name) is not None}
    if drop is not None and goals:
        conflict, expected = f"{drop} as well", "only one target size or quality for each output"
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
    return Selection(**plan, **goals)


def _healing(recipe: Recipe, options: ShrinkOptions) -> HealingTask | None:
    heal = {**given(recipe.heal), **({"data": options.data} if options.data else {})}
    if not heal:
        return None
    if heal.get("minutes") is not None:
        expected, fix = (
            "healing in what the minutes of shrink leave",
            "leave minutes out of the recipe, or heal with it",
        )
        raise InputError(options.recipe, expected=expected, fix=fix, option="recipe")
    if not heal.get("data"):
        expected, fix = f"what the recipe {options.recipe} heals on", "name some, such as pydoc"
        raise InputError("none", expected=expected, fix=fix, option="data")
    task = task_of(heal)
    task.method.check()
    return task
