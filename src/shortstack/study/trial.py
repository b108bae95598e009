"""A trial: one combination of a study's settings, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from shortstack.data import CalibrationText, RepairText
from shortstack.errors import InputError
from shortstack.healing.methods import HealOptions
from shortstack.healing.recipes import with_recipe
from shortstack.machine.files import digest
from shortstack.machine.options import changed_options, given, options
from shortstack.planning import Selection
from shortstack.planning.layer_sets import check_pace, check_removal, parse_layers, show_drop
from shortstack.planning.selection import GOALS, layers_to_remove

NONE = (None, "none")


@options
class HealEntry(HealOptions):
    """A way to heal: a name for the report, a recipe to start from, and options of heal."""

    name: str | None = None
    recipe: str | None = None


@dataclass(frozen=True)
class Heal:
    """How a trial heals: a name for the report, and options of heal."""

    name: str
    options: HealOptions

    @classmethod
    def of(cls, entry: str | HealEntry | None) -> Heal | None:
        """Read an entry of the file: none, a recipe, or options, of a recipe or by themselves."""
        if entry in NONE:
            return None
        values: dict[str, Any] = {"recipe": entry} if isinstance(entry, str) else given(entry)
        name, recipe = values.pop("name", None), values.pop("recipe", None)
        if "seed" in values:
            raise InputError("seed is no option of heal in a study; write seed: [0] beside it", option="seed")
        values = with_recipe(values, recipe) if recipe else values
        known = {declared.name for declared in fields(HealOptions)} - {"seed"}
        options = HealOptions(**{key: value for key, value in values.items() if key in known})
        options.config.source  # noqa: B018  refused if no data is named
        return cls(name or recipe or options.method, options)


@dataclass(frozen=True)
class Trial:
    """One combination of settings. Settings without effect are None, so that trials that differ only in them are one."""

    model: str
    selection: Selection
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
        selection = Selection(**{name: value for name, value in settings.items() if name not in own})
        if all(getattr(selection, goal) is None for goal in GOALS):
            raise InputError("missing; give how much to remove, such as 25%", option="drop")
        text, heal = settings.get("calibration", CalibrationText()), Heal.of(settings.get("heal"))
        repair = RepairText() if settings.get("repair") is True else settings.get("repair") or None
        if (
            heal
            and heal.options.layers_per_round
            and (repair or selection.layers or selection.strategy or selection.step)
        ):
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
        return selection.layers is None and selection.by.needs_scores and selection.how.feed == "scores"

    @property
    def selection_seed(self) -> int:
        return self.seed if self.calibration or self.selection.by.draws else 0

    @property
    def size(self) -> tuple[str, str]:
        """Return the model, and how much of it goes: trials of one size compete."""
        selection = self.selection
        goal = next(getattr(selection, name) for name in GOALS if getattr(selection, name) is not None)
        return self.model, show_drop(goal)

    def amount(self, layers: int) -> int:
        """Return how many of a model's layers go."""
        return layers_to_remove(self.selection, layers, None)

    def check_fits(self, layers: int) -> None:
        """Refuse a cut, or a healing of the last layers, that a model of this depth has too few layers for."""
        amount = self.amount(layers)
        if self.selection.layers:
            check_removal(parse_layers(str(self.selection.layers)), layers)
        if self.heal:
            self.heal.options.config.method.check_fits(layers - amount)
            if self.heal.options.layers_per_round:
                check_pace(self.heal.options.layers_per_round, amount)

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON-able data."""
        heal, selection = self.heal, dict(changed_options(self.selection))
        if "drop" in selection:
            selection["drop"] = show_drop(selection["drop"])
        return {
            "model": self.model,
            **selection,
            "calibration": self.calibration and asdict(self.calibration),
            "repair": self.repair and asdict(self.repair),
            "heal": heal and {"name": heal.name, **given(heal.options)},
            "layers_per_round": heal and heal.options.layers_per_round,
            "seed": self.seed,
        }

    @cached_property
    def id(self) -> str:
        return digest(self.settings())[:16]
