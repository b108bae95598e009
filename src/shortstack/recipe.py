"""Presets of plan and heal as YAML: those that come with the package, and a user's own files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from shortstack.errors import InputError

FOLDER = "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def given(self) -> dict[str, Any]:
        """What the recipe says, without what it leaves open."""
        return self.model_dump(exclude_unset=True)


class PlanPart(_Part):
    """The options of plan that a recipe can set."""

    metric: str | None = None
    drop: str | int | None = None
    layers: str | None = None
    block: bool = False
    search: bool = False
    keep_first: int = 0
    keep_last: int = 0


class HealPart(_Part):
    """The options of heal that a recipe can set."""

    data: str | None = None
    max_length: int = 256
    max_samples: int | None = None
    held_out: int | None = None
    self_generate: bool = False
    method: str = "partial"
    step: int | None = None
    last: int | None = None
    layers: str | None = None
    near_cut: int | None = None
    head: bool | None = None
    untie_head: bool = False
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: str | None = None
    loss: str = "sft"
    top_k: int = 64
    temperature: float = 1.0
    hidden_weight: float = 0.0
    epochs: float = 2
    lr: float = 1e-4
    batch_size: int = 16
    micro_batch_size: int | None = None
    warmup_steps: int = 100
    decay: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    eval_steps: int | None = None
    patience: int | None = None
    seed: int = 0


class Recipe(_Part):
    """How layers are chosen, and how the pruned model heals."""

    title: str = ""
    plan: PlanPart = PlanPart()
    heal: HealPart = HealPart()


def recipe_names() -> list[str]:
    """The presets of the package."""
    folder = resources.files("shortstack") / FOLDER
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """A preset by its name, or a YAML file.

    Raises:
        InputError: there is none, it is not YAML, or a key or a value is wrong; with its line, and the nearest right key.
    """
    text = _text(name)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(name, expected="YAML", found=str(error), fix="correct the file") from error
    if not isinstance(data, dict):
        raise InputError(name, expected="keys such as heal", found=type(data).__name__, fix="correct the file")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _explained(name, text, error) from error


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
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(name, expected="a YAML file", found=str(error), fix="check the path") from error


def _explained(name: str, text: str, error: ValidationError) -> InputError:
    """The first thing that is wrong."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = f"{name}, line {_line_of(text, path)}"
    if first["type"] != "extra_forbidden":
        return InputError(
            where, expected=f"{'.'.join(path)}: {first['msg']}", found=repr(first["input"]), fix="correct it"
        )
    known = list(_fields(path[:-1]))
    near = difflib.get_close_matches(path[-1], known, 1)
    return InputError(
        where,
        expected=f"{'.'.join(path[:-1]) or 'a recipe'} with keys it knows" if near else f"one of {', '.join(known)}",
        found=path[-1],
        fix=f"did you mean {near[0]}?" if near else "leave it out",
    )


def _fields(path: Sequence[str]) -> Mapping[str, Any]:
    parts: Mapping[tuple[str, ...], type[_Part]] = {(): Recipe, ("plan",): PlanPart, ("heal",): HealPart}
    return parts[tuple(path)].model_fields


def _line_of(text: str, path: list[str]) -> int:
    """The line of a key in the file, counted from 1."""
    node: Any = yaml.compose(text)
    line = 0
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            break
        found = [(key, value) for key, value in node.value if key.value == part]
        if not found:
            break
        line, node = found[0][0].start_mark.line, found[0][1]
    return line + 1
