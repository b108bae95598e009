"""One path through a study's grid: which model, how layers are chosen, how the cut is repaired and healed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from shortstack.errors import InputError, PlanError
from shortstack.healing.options import option_defaults, task_of
from shortstack.healing.recipes import read_recipe
from shortstack.machine.yamlfile import Part
from shortstack.planning.layer_sets import check_choice, parse_drop, parse_layers
from shortstack.scoring.metrics import metric_named

ONE_SHOT = "one-shot"
TURNED = ("step", "seed")  # heal's options that a study has axes for


class Calibration(Part):
    """The text that metrics look at; seed: of the windows, the trial's own without one."""

    text: str = "pydoc"
    samples: int | Literal["all"] = Field(default=10, ge=1)
    length: int = Field(default=128, ge=4)
    seed: int | None = Field(default=None, ge=0)


class Refit(Part):
    """What closed-form repair looks at."""

    text: str = "pydoc"
    samples: int = Field(default=256, ge=4)
    length: int = Field(default=128, ge=4)


@dataclass(frozen=True)
class Choice:
    """How layers are chosen: by a metric, of blocks or not; by searching; or by name."""

    metric: str | None = None
    block: bool = False
    layers: str | None = None

    @classmethod
    def parse(cls, text: str) -> Choice:
        """From the words of a study.

        >>> Choice.parse("angular block")
        Choice(metric='angular', block=True, layers=None)

        Raises:
            InputError: no such metric, or wrong layers.
        """
        if text == "search":
            return cls()
        if text.startswith("layers "):
            parse_layers(text.removeprefix("layers "))
            return cls(layers=text.removeprefix("layers "))
        name = text.removesuffix(" block")
        return cls(name, block=name != text or not metric_named(name).singles)

    @property
    def search(self) -> bool:
        return self.metric is None and self.layers is None

    @property
    def looks_at_text(self) -> bool:
        return self.search or (self.metric is not None and metric_named(self.metric).needs_text)

    @property
    def scored(self) -> bool:
        """Whether it needs the scores of the whole model."""
        return self.metric is not None and metric_named(self.metric).needs_scores

    @property
    def seeded(self) -> bool:
        """Whether the same text and another seed may choose other layers."""
        return self.search or self.metric in ("random", "random-authors")


@dataclass(frozen=True)
class Healing:
    """A way to heal: its name, and the options of heal that it sets."""

    name: str
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, value: Any, named: Mapping[str, Healing]) -> Healing | None:
        """From what the file says: none, a name, a recipe, or options, of a recipe or by themselves."""
        if value in (None, "none"):
            return None
        if isinstance(value, str):
            return named.get(value) or cls._from(value, value, {})
        given = value.given
        name, recipe = given.pop("name", None), given.pop("recipe", None)
        for option in TURNED:
            if option in given:
                raise InputError(
                    f"heal: {option}", expected="it elsewhere", found=str(given[option]), fix=_AXES[option]
                )
        return cls._from(name or recipe or given.get("method", "partial"), recipe, given)

    @classmethod
    def _from(cls, name: str, recipe: str | None, given: Mapping[str, Any]) -> Healing:
        options = {**(read_recipe(recipe).heal.given if recipe else {}), **given}
        options.pop("seed", None)  # the trial's counts
        if "step" in options:
            raise InputError(f"heal: {name}", expected="a recipe that heals once", found="step", fix=_AXES["step"])
        if not options.get("data"):
            raise InputError(f"heal: {name}", expected="data to learn from", found="none", fix="add data: pydoc")
        task_of(options)
        return cls(str(name), tuple(sorted(options.items())))

    def arguments(self, seed: int) -> dict[str, Any]:
        """Every option, with its default where none is set."""
        return {**option_defaults(), **dict(self.options), "seed": seed}


_AXES = {"step": "write strategy: step 1 in the study", "seed": "write seeds: [0] in the study"}


@dataclass(frozen=True)
class Trial:
    """One path through the grid. What changes nothing is left out: two that only differ in it are one."""

    model: str
    metric: str
    drop: str | None
    calibration: Calibration | None
    strategy: str
    repair: Refit | None
    heal: Healing | None
    seed: int

    @classmethod
    def of(cls, settings: Mapping[str, Any], named: Mapping[str, Healing]) -> Trial:
        """From the file's words; named: its ways to heal, by name.

        Raises:
            InputError: a word that is none.
        """
        choice, repair = Choice.parse(settings["metric"]), settings["repair"]
        check_choice(None, choice.layers) if choice.layers else check_choice(settings["drop"], None)
        if settings["strategy"] != ONE_SHOT and not re.fullmatch(r"step [1-9]\d{0,4}", settings["strategy"]):
            raise InputError(
                "strategy",
                expected=f"{ONE_SHOT}, or step and a number",
                found=repr(settings["strategy"]),
                fix="write strategy: step 1",
            )
        return cls(
            settings["model"],
            settings["metric"],
            None if choice.layers else str(settings["drop"]),
            settings["calibration"] if choice.looks_at_text else None,
            settings["strategy"],
            Refit() if repair is True else repair or None,
            Healing.of(settings["heal"], named),
            settings["seed"],
        )

    @property
    def choice(self) -> Choice:
        return Choice.parse(self.metric)

    def amount(self, layers: int) -> int:
        """How many of the model's layers go.

        Raises:
            PlanError: none or all of them.
        """
        if self.choice.layers:
            return len(parse_layers(self.choice.layers))
        try:
            return parse_drop(self.drop or 0, layers)
        except PlanError as error:
            raise error.in_file(self.model) from error

    @property
    def step(self) -> int | None:
        """How many layers go at a time; None: all at once."""
        return None if self.strategy == ONE_SHOT else int(self.strategy.removeprefix("step "))

    @property
    def in_turns(self) -> bool:
        """Whether it heals after each cut."""
        return self.step is not None and self.heal is not None

    @property
    def choosing_seed(self) -> int:
        """The seed of the choice of layers."""
        return self.seed if self.calibration is None or self.calibration.seed is None else self.calibration.seed

    def settings(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "model": self.model,
            "metric": self.metric,
            "drop": self.drop,
            "calibration": self.calibration and self.calibration.model_dump(),
            "strategy": self.strategy,
            "repair": self.repair and self.repair.model_dump(),
            "heal": self.heal and {"name": self.heal.name, **dict(self.heal.options)},
            "seed": self.seed,
        }

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Refuse combinations that cannot be.

        Raises:
            InputError: naming what to leave out.
        """
        if self.step is None:
            return
        choice = self.choice
        wrong = None
        if choice.search or choice.layers or choice.block:
            wrong = "metric", self.metric, "a metric that scores single layers"
        elif self.heal is None and not choice.looks_at_text:
            wrong = "metric", self.metric, "a metric that the layers removed before can change, or healing between"
        elif self.heal and self.repair:
            wrong = "repair", "true", "no repair, where healing comes in turns"
        if wrong:
            axis, found, expected = wrong
            raise InputError(
                f"strategy: {self.strategy}",
                expected=expected,
                found=f"{axis} {found}",
                fix=f"leave it out: except: [{{strategy: {self.strategy}, {axis}: {found}}}]",
            )


@dataclass(frozen=True)
class Pattern:
    """Settings of trials to leave out: a trial matches that has one of the values of each."""

    values: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, values: Mapping[str, Sequence[Any]], named: Mapping[str, Healing]) -> Pattern:
        """From the file's words."""
        axes = dict(values)
        for name, change in (
            ("drop", lambda value: str(value)),
            ("repair", lambda value: Refit() if value is True else value or None),
            ("heal", lambda value: Healing.of(value, named)),
        ):
            if name in axes:
                axes[name] = [change(value) for value in axes[name]]
        return cls(axes)

    def matches(self, trial: Trial) -> bool:
        return all(getattr(trial, name) in values for name, values in self.values.items())
