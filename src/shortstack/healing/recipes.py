"""Presets of plan and heal as YAML: those that come with the package, and a user's own files."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

from shortstack.data import CalibrationText
from shortstack.data.sources import parse_samples
from shortstack.data.tokens import JUDGING
from shortstack.errors import InputError
from shortstack.healing.methods import HealOptions, config_of
from shortstack.machine import yamlfile
from shortstack.machine.options import given, made_of
from shortstack.planning import Choice

FOLDER = resources.files("shortstack.healing") / "presets"
PLANNED = ("metric", "drop", "layers", "strategy", "keep_first", "keep_last")
ON_TEXT = ("text", "samples", "length")
IN_TURNS = ("metric", "drop", *ON_TEXT)
IN_PLAN = (*PLANNED, "finalists", *ON_TEXT)


class PlanPart(yamlfile.part_of("PlanPart", Choice, CalibrationText, only=IN_PLAN)):  # type: ignore[misc]  # made of options
    """The options of plan that a recipe can set, whether the cut is repaired, and what to choose and to repair on."""

    repair: bool = False
    repair_samples: int | None = None
    repair_text: str | None = None


class Recipe(yamlfile.Part):
    """How layers are chosen, and how the pruned model heals."""

    title: str = ""
    plan: PlanPart = PlanPart()
    heal: HealOptions = HealOptions()


def recipe_names() -> list[str]:
    """List the presets of the package."""
    return sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml"))


def listed_recipes() -> list[dict[str, str]]:
    """Return name and title of each preset, and the dataset that it reads from the hub where no other data is named."""
    recipes = {name: yamlfile.parsed(_text(name), Recipe, where=name) for name in recipe_names()}
    data = {name: str(recipe.heal.data) for name, recipe in recipes.items()}
    return [
        {"name": name, "title": recipe.title, "hub_data": data[name] if "/" in data[name] else "none"}
        for name, recipe in recipes.items()
    ]


def read_recipe(name: str) -> Recipe:
    """Read a preset by its name, or a YAML file; what is wrong with it is refused with its line."""
    recipe = yamlfile.parsed(_text(name), Recipe, where=name)
    plan = recipe.plan
    with named_by_line(name, parts=("plan",), whole=True):
        choice = made_of(Choice, plan.given)
        if plan.drop is not None or plan.layers is not None:
            choice.check()
        parse_samples(plan.given.get("samples", 1))
        if plan.repair_samples is not None and plan.repair_samples < JUDGING:
            expected, fix = f"at least {JUDGING} windows", "write more, such as 256"
            raise InputError(plan.repair_samples, expected=expected, fix=fix, option="repair_samples")
    with named_by_line(name, whole=True):
        config_of(given(recipe.heal))
    return recipe


def with_recipe(typed: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the option values of heal by name: those of the recipe, and in their place what was typed."""
    recipe = read_recipe(name)
    values = given(recipe.heal)
    if recipe.heal.layers_per_round is not None:  # rounds select layers as the plan says
        _check_in_turns(recipe, name)
        values |= {option: str(value) if option in PLANNED else value for option, value in recipe.plan.given.items()}
    if typed.keys() & {"train_last", "train_layers"}:  # which layers train is one choice
        values = {option: value for option, value in values.items() if option not in ("train_last", "train_layers")}
    return {**values, **typed}


def _check_in_turns(recipe: Recipe, name: str) -> None:
    """Refuse what a plan says that turns do not follow."""
    for option in recipe.plan.given:
        if option not in IN_TURNS:
            expected = f"a plan for healing in turns, which follows {', '.join(IN_TURNS)}"
            with named_by_line(name, parts=("plan",), whole=True):
                raise InputError(
                    option, expected=expected, fix="leave it out, or leave layers_per_round out", option=option
                )


@contextmanager
def named_by_line(
    recipe: str | None, typed: Collection[str] = (), *, parts: Sequence[str] = ("heal", "plan"), whole: bool = False
) -> Iterator[None]:
    """Let an error about an option name the recipe's line, where that option was not typed but stands there.

    parts: of the recipe, where the option may stand. whole: whatever is wrong is of the recipe, named without a line then.
    """
    try:
        yield
    except InputError as error:
        name, lines = error.option, []
        if recipe and name and name not in typed:
            lines = [yamlfile.line_of(_text(recipe), part, name) for part in parts]
        line = next((line for line in lines if line), None)
        if line is None and not (whole and name):
            raise
        raise error.in_file(f"{recipe}, line {line}" if line else str(recipe)) from error


def _text(name: str) -> str:
    if name in recipe_names():
        return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    if not name.endswith((".yaml", ".yml")):
        near = difflib.get_close_matches(name, recipe_names(), 1)
        raise InputError(
            repr(name),
            expected=f"a .yaml file, or one of {', '.join(recipe_names())}",
            fix=f"did you mean {near[0]}?" if near else "`shortstack list recipes` explains each",
            option="recipe",
        )
    return yamlfile.text_of(name)
