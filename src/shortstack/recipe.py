"""Presets of plan and heal as YAML: those that come with the package, and a user's own files."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from importlib import resources
from typing import Any, get_type_hints

from pydantic import create_model

from shortstack import yamlfiles
from shortstack.errors import InputError
from shortstack.healing_options import Course, InTurns, Learned, Loss, Part

FOLDER = "recipes"


class PlanPart(yamlfiles.Part):
    """The options of plan that a recipe can set, and whether the cut is repaired."""

    metric: str | None = None
    drop: str | int | None = None
    layers: str | None = None
    block: bool = False
    search: bool = False
    keep_first: int = 0
    keep_last: int = 0
    repair: bool = False


class Recipe(yamlfiles.Part):
    """How layers are chosen, and how the pruned model heals."""

    title: str = ""
    plan: PlanPart = PlanPart()
    heal: yamlfiles.Part = yamlfiles.Part()


def _heal_part() -> type[yamlfiles.Part]:
    """The options of heal that a recipe can set: not those of the plan, nor the teacher, which is a model of one's own."""
    groups = (Learned, Part, Loss, Course, InTurns)
    hints = {name: hint for group in groups for name, hint in get_type_hints(group, include_extras=True).items()}
    listed = [field for group in groups for field in fields(group) if field.name not in ("teacher", "drop", "metric")]
    known: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in listed}
    return create_model("HealPart", __base__=yamlfiles.Part, **known)


HealPart = _heal_part()
_Read = create_model("Recipe", __base__=Recipe, heal=(HealPart, HealPart()))


def recipe_names() -> list[str]:
    """The presets of the package."""
    folder = resources.files("shortstack") / FOLDER
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """A preset by its name, or a YAML file.

    Raises:
        InputError: there is none, it is not YAML, or a key or a value is wrong; with its line, and the nearest right key.
    """
    return yamlfiles.parsed(_text(name), _Read, where=name)


def filled(groups: Mapping[str, Any], recipe: str, typed: Callable[[str], bool]) -> dict[str, Any]:
    """The groups of options with the recipe's values where nothing was typed.

    Raises:
        InputError: as read_recipe.
    """
    found = read_recipe(recipe)
    values = {**found.heal.given, **({} if "step" not in found.heal.given else _plan_of(found.plan.given))}
    return {
        name: replace(
            group,
            **{
                field.name: values[field.name]
                for field in fields(group)
                if field.name in values and not typed(field.name)
            },
        )
        for name, group in groups.items()
    }


def _plan_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What turns need of the plan."""
    return {name: str(plan[name]) for name in ("drop", "metric") if name in plan}


def _text(name: str) -> str:
    if name in recipe_names():
        return (resources.files("shortstack") / FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    if not name.endswith((".yaml", ".yml")):
        near = difflib.get_close_matches(name, recipe_names(), 1)
        raise InputError(
            "--recipe",
            expected=f"a .yaml file, or one of {', '.join(recipe_names())}",
            found=repr(name),
            fix=f"did you mean {near[0]}?" if near else "`shortstack ls recipes` explains each",
        )
    return yamlfiles.text_of(name)
