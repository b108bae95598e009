"""One path through a study's grid: which model, how layers are chosen, how the cut is repaired and healed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field

from shortstack.data import Text
from shortstack.data.tokens import JUDGING
from shortstack.errors import InputError, PlanError
from shortstack.healing.recipes import read_recipe
from shortstack.healing.task import option_defaults, task_of
from shortstack.machine.options import given as options_given
from shortstack.machine.yamlfile import part_of
from shortstack.planning import STRATEGIES, Choice
from shortstack.planning.layer_sets import check_pace, check_removal, parse_drop, parse_layers
from shortstack.runs.records import ONE_SHOT

NOT_IN_HEAL = {"layers_per_round": "write strategy: step 1 in the study", "seed": "write seeds: [0] in the study"}


class StudyCalibration(part_of("StudyCalibration", Text)):  # type: ignore[misc]  # made of options
    """The text that metrics look at; seed: of the windows, the trial's own without one."""

    seed: int | None = Field(
        default=None, ge=0, lt=2**32, description="Seed of the windows; the trial's own without one."
    )


class StudyRepair(part_of("StudyRepair", Text)):  # type: ignore[misc]  # made of options
    """The text that closed-form repair looks at. samples: in all, at least JUDGING of each source."""

    samples: int = Field(256, ge=JUDGING)


def parse_choice(text: str, *, drop: str | None = None, step: int | None = None) -> Choice:
    """Read how layers are chosen, in a study's words: a metric, a metric and a strategy, search, or layers by name.

    >>> parse_choice("angular block").metric, parse_choice("search").strategy, parse_choice("layers 3-5").layers
    ('angular', 'search', '3-5')
    """
    if text.startswith("layers "):
        return Choice(layers=text.removeprefix("layers "))
    metric, _, strategy = text.rpartition(" ")
    if strategy in STRATEGIES:
        usual = "ppl" if STRATEGIES[strategy].by_metric else None
        return Choice(metric or usual, drop, strategy=strategy, step=step)
    return Choice(text, drop, step=step)


@dataclass(frozen=True)
class HealOptions:
    """A way to heal: its name, and the options of heal that it sets."""

    name: str
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, value: Any, named: Mapping[str, HealOptions]) -> HealOptions | None:
        """Read what the file says: none, a name, a recipe, or options, of a recipe or by themselves."""
        if value in (None, "none"):
            return None
        if isinstance(value, str) and value in named:
            return named[value]
        given = {"recipe": value} if isinstance(value, str) else options_given(value)
        name, recipe = given.pop("name", None), given.pop("recipe", None)
        options = options_given(read_recipe(recipe).heal) if recipe else {}
        options.pop("seed", None)  # the trial's counts
        if given.keys() & {"train_last", "train_layers"}:  # which layers train is one thing, however it is said
            options = {
                option: value for option, value in options.items() if option not in ("train_last", "train_layers")
            }
        options |= given
        name = name or recipe or options.get("method", "partial")
        for option, fix in NOT_IN_HEAL.items():
            if option in options:
                raise InputError(options[option], expected=f"no {option} under heal", fix=fix, where=f"heal: {option}")
        if not options.get("data"):
            raise InputError("none", expected="data to learn from", fix="add data: pydoc", where=f"heal: {name}")
        task_of(options)
        return cls(str(name), tuple(sorted(options.items())))


@dataclass(frozen=True)
class Trial:
    """One path through the grid. What changes nothing is left out: two that only differ in it are one."""

    model: str
    metric: str
    drop: str | None
    calibration: StudyCalibration | None
    strategy: str
    repair: StudyRepair | None
    heal: HealOptions | None
    seed: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Trial:
        """Make a trial of settings as read_setting() gives them."""
        choice, strategy = parse_choice(settings["metric"], drop=settings["drop"]), settings["strategy"]
        choice.check()
        calibration = settings["calibration"]
        for text in filter(None, (calibration, settings["repair"])):
            Text(text.source, text.samples, text.length)  # refuses what is out of range
        if strategy != ONE_SHOT and not re.fullmatch(r"step [1-9]\d{0,4}", strategy):
            expected, fix = f"{ONE_SHOT}, or step and a number", "write it like step 1"
            raise InputError(repr(strategy), expected=expected, fix=fix, option="strategy")
        return cls(**{**settings, "drop": choice.drop, "calibration": calibration if choice.needs_text else None})

    @property
    def choice(self) -> Choice:
        return parse_choice(self.metric, drop=self.drop, step=self.step)

    @property
    def removes_window(self) -> bool:
        """Whether one contiguous window of layers goes."""
        return self.choice.how.window

    @property
    def needs_scores(self) -> bool:
        """Whether the layers are chosen by scores of the whole model, in a step of their own."""
        choice = self.choice
        return choice.metric is not None and choice.by.needs_scores and not choice.measures

    @property
    def step(self) -> int | None:
        """How many layers go at a time; None: all at once."""
        return None if self.strategy == ONE_SHOT else int(self.strategy.removeprefix("step "))

    def amount(self, layers: int) -> int:
        """Return how many of the model's layers go."""
        if self.choice.layers:
            return len(parse_layers(str(self.choice.layers)))
        try:
            return parse_drop(self.drop or 0, layers)
        except PlanError as error:
            raise error.in_file(self.model) from error

    @property
    def calibration_arguments(self) -> dict[str, Any]:
        """The text that the choice of layers looks at, and the seed, as arguments of a step."""
        if self.calibration is None:
            return {"calibration_data": None, "seed": self.seed if self.choice.by.draws else 0}
        text = self.calibration
        calibration = {"calibration_data": text.source, "num_samples": text.samples, "seq_length": text.length}
        return {**calibration, "seed": self.seed if text.seed is None else text.seed}

    @property
    def heal_arguments(self) -> dict[str, Any]:
        """Every option of heal but the teacher, with its default where none is set, as arguments of a step."""
        options = dict(self.heal.options) if self.heal else {}
        return {**option_defaults(), **options, "seed": self.seed}

    def settings(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
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

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Refuse combinations that cannot be."""
        if self.step is None:
            return
        choice = self.choice
        wrong = None
        if choice.layers or choice.strategy:
            wrong = "metric", self.metric, "a metric that scores single layers"
        elif self.heal is None and not choice.needs_text:
            wrong = "metric", self.metric, "a metric that the layers removed before can change, or healing between"
        elif self.heal and self.repair:
            wrong = "repair", "true", "no repair, where healing comes in turns"
        if wrong:
            axis, value, expected = wrong
            fix = f"leave it out: except: [{{strategy: {self.strategy}, {axis}: {value}}}]"
            raise InputError(f"{axis} {value}", expected=expected, fix=fix, where=f"strategy: {self.strategy}")

    def check_fits(self, layers: int) -> None:
        """Refuse a cut, or a healing of the last layers, that a model of so many layers has too few for."""
        amount = self.amount(layers)
        if self.choice.layers:
            check_removal(parse_layers(str(self.choice.layers)), layers, option="layers")
        if self.step:
            check_pace(self.step, amount)
        if self.heal:
            task_of(self.heal_arguments).method.check_fits(layers - amount)


def calibration_text(arguments: Mapping[str, Any]) -> Text:
    return Text(arguments["calibration_data"], arguments["num_samples"], arguments["seq_length"])


def read_setting(name: str, value: Any, named: Mapping[str, HealOptions]) -> Any:
    """Return a setting as a trial has it, from the file's word for it; named: the ways to heal, by name."""
    if name == "drop":
        return str(value)
    if name == "repair":
        return StudyRepair() if value is True else value or None
    return HealOptions.of(value, named) if name == "heal" else value
