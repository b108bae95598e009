"""A trial: one combination of a study's settings, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

from shortstack.data import CalibrationText, RepairText
from shortstack.errors import InputError
from shortstack.healing import HealingTask
from shortstack.healing.recipes import with_recipe
from shortstack.healing.task import option_defaults, task_of
from shortstack.machine.files import digest
from shortstack.machine.options import changed_options
from shortstack.planning import Choice
from shortstack.planning.layer_sets import check_pace, check_removal, parse_drop, parse_layers

NONE = (None, "none")


@dataclass(frozen=True)
class Heal:
    """How a trial heals: a name for the report, options of heal, and how many layers go before each healing."""

    name: str
    options: Mapping[str, Any]
    layers_per_round: int | None = None

    @classmethod
    def of(cls, entry: Any) -> Heal | None:
        """Read an entry of the file: none, a recipe, or options, of a recipe or by themselves."""
        if entry in NONE:
            return None
        given = {"recipe": entry} if isinstance(entry, str) else dict(entry.given)
        name, recipe = given.pop("name", None), given.pop("recipe", None)
        if "seed" in given:
            raise InputError("seed is no option of heal in a study; write seed: [0] beside it", option="seed")
        options = with_recipe(given, recipe) if recipe else given
        known = {key: value for key, value in options.items() if key in option_defaults() and key != "seed"}
        task_of(known).data.source  # noqa: B018  refused if no data is named
        name = str(name or recipe or known.get("method", "partial"))
        return cls(name, known, cast("int | None", options.get("step")))

    def task_options(self, seed: int) -> dict[str, Any]:
        """Return every option of heal."""
        return {**option_defaults(), **self.options, "seed": seed}

    @property
    def task(self) -> HealingTask:
        return task_of(self.options)


@dataclass(frozen=True)
class Trial:
    """One combination of settings. Settings without effect are None, so that trials that differ only in them are one."""

    model: str
    selection: Choice
    calibration: CalibrationText | None
    repair: RepairText | None
    heal: Heal | None
    seed: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Trial:
        """Make a trial of the file's values.

        Raises:
            InputError: settings that exclude each other, or are missing.
        """
        if "model" not in settings:
            raise InputError("missing; name a model, such as demo", option="model")
        own = {"model", "calibration", "repair", "heal", "seed"}
        selection = Choice(**{name: value for name, value in settings.items() if name not in own})
        selection.check()
        text, heal = settings.get("calibration", CalibrationText()), Heal.of(settings.get("heal"))
        repair = RepairText() if settings.get("repair") is True else settings.get("repair") or None
        if heal and heal.layers_per_round and (repair or selection.layers or selection.strategy or selection.step):
            fix = "leave repair, layers, strategy and step out"
            raise InputError(f"a trial in rounds removes the layers with the lowest metric; {fix}", option="heal")
        return cls(
            settings["model"],
            selection,
            text if selection.needs_text else None,
            repair,
            heal,
            settings.get("seed", 0),
        )

    @property
    def needs_scores(self) -> bool:
        """Whether layers are selected by scores of the whole model, in a step of their own."""
        selection = self.selection
        return selection.layers is None and selection.by.needs_scores and not selection.measures

    @property
    def selection_seed(self) -> int:
        return self.seed if self.calibration or self.selection.by.draws else 0

    @property
    def size(self) -> tuple[str, str]:
        """Return the model, and how much of it goes: trials of one size compete."""
        selection = self.selection
        return self.model, str(selection.drop or selection.params or selection.memory or selection.layers)

    def amount(self, layers: int) -> int:
        """Return how many of a model's layers go."""
        if self.selection.layers:
            return len(parse_layers(str(self.selection.layers)))
        return parse_drop(self.selection.drop or 0, layers)

    def check_fits(self, layers: int) -> None:
        """Refuse a cut, or a healing of the last layers, that a model of this depth has too few layers for."""
        amount = self.amount(layers)
        if self.selection.layers:
            check_removal(parse_layers(str(self.selection.layers)), layers, option="layers")
        if self.heal:
            self.heal.task.method.check_fits(layers - amount)
            if self.heal.layers_per_round:
                check_pace(self.heal.layers_per_round, amount)

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON-able data."""
        return {
            "model": self.model,
            **{
                name: str(value) if name == "drop" else value for name, value in changed_options(self.selection).items()
            },
            "calibration": self.calibration and asdict(self.calibration),
            "repair": self.repair and asdict(self.repair),
            "heal": self.heal and {"name": self.heal.name, **self.heal.options},
            "layers_per_round": self.heal and self.heal.layers_per_round,
            "seed": self.seed,
        }

    @cached_property
    def id(self) -> str:
        return digest(self.settings())[:16]
