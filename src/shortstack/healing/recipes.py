"""Presets of plan and heal as YAML: those of the package, and a user's own files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any

from pydantic import Field

from shortstack.data import Sources, Text
from shortstack.data.text import MIX
from shortstack.data.tokens import JUDGING
from shortstack.errors import InputError
from shortstack.healing.methods import HealOptions
from shortstack.machine import yamlfile
from shortstack.machine.options import given, no_choice, options
from shortstack.planning.selection import Selection

FOLDER = resources.files("shortstack.healing") / "presets"
IN_ROUNDS = ("metric", "drop", "calibration_data", "num_samples", "seq_length")
ONE_CHOICE = {"train_last", "train_layers"}  # each replaces the other


@options
class PlanOptions(Selection):
    """How layers are selected, on which text, and whether the cut is repaired."""

    calibration_data: Sources | None = None
    num_samples: int | None = Field(None, ge=1)
    seq_length: int | None = Field(None, ge=4)
    repair: bool = False
    repair_samples: int | None = Field(None, ge=JUDGING)
    repair_data: Sources | None = None


class Recipe(yamlfile.Part):
    """How layers are selected, and how the pruned model heals."""

    title: str = ""
    plan: PlanOptions = PlanOptions()
    heal: HealOptions = HealOptions()


def recipe_names() -> list[str]:
    """List the presets of the package."""
    return sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml"))


def listed_recipes() -> list[dict[str, str]]:
    """Return name and title of each preset, and the hub dataset that it reads by default."""
    recipes = {name: read_recipe(name) for name in recipe_names()}
    data = {name: Text(recipe.heal.data or MIX).name for name, recipe in recipes.items()}
    return [
        {"name": name, "title": recipe.title, "hub_data": data[name] if "/" in data[name] else "none"}
        for name, recipe in recipes.items()
    ]


def read_recipe(name: str) -> Recipe:
    """Read a preset by name, or a YAML file; errors name its line."""
    with named_by_line(name):
        recipe = yamlfile.parsed(_text(name), Recipe, where=name)
        _ = recipe.heal.config
    return recipe


def with_recipe(typed: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options of heal by name: the recipe's, replaced by those that were typed."""
    recipe = read_recipe(name)
    values, plan = given(recipe.heal), given(recipe.plan)
    if recipe.heal.layers_per_round is not None:  # rounds select layers as the plan says
        with named_by_line(name):
            for option in plan.keys() - {*IN_ROUNDS}:
                raise InputError("rounds do not follow it; leave it out, or layers_per_round", option=option)
        values |= plan
    replaced = ONE_CHOICE if typed.keys() & ONE_CHOICE else set()
    return {**{option: value for option, value in values.items() if option not in replaced}, **typed}


@contextmanager
def named_by_line(recipe: str | None, typed: Collection[str] = ()) -> Iterator[None]:
    """Put the recipe's line before an error about an option that stands there and was not typed."""
    try:
        yield
    except InputError as error:
        if not recipe or error.option in ("", "recipe", *typed):
            raise
        with yamlfile.lines_of(recipe, _text(recipe)):
            raise


def _text(name: str) -> str:
    if name in recipe_names():
        return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    if not name.endswith((".yaml", ".yml")):
        message = f"{name!r} is no recipe and no .yaml file; {no_choice(name, recipe_names())}"
        raise InputError(message, option="recipe")
    return yamlfile.text_of(name)
