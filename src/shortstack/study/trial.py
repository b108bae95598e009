"""A trial: one combination of a study's settings, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from shortstack.checkpoint import Sizes
from shortstack.data import Text
from shortstack.data.tokens import JUDGING
from shortstack.errors import InputError
from shortstack.healing.methods import HealOptions
from shortstack.healing.recipes import with_recipe
from shortstack.machine.files import digest
from shortstack.machine.options import changed_options, given, options
from shortstack.planning import Selection
from shortstack.planning.layer_sets import show_drop
from shortstack.planning.selection import GOALS, layers_to_remove

NONE = (None, "none")
REPAIR_SAMPLES = 256


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
        options.config.text  # noqa: B018  refused if no data is named
        return cls(name or recipe or options.method, options)


@dataclass(frozen=True)
class Model:
    """A base model: its contents, depth and sizes; no depth if it is not on this machine."""

    identity: Mapping[str, Any]
    layers: int = 0
    sizes: Sizes | None = None


@dataclass(frozen=True)
class Trial:
    """One combination of settings. Settings without effect are None, so that trials that differ only in them are one."""

    model: str
    selection: Selection
    calibration: Text | None
    repair: Text | None
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
        text, heal = settings.get("calibration", Text()), Heal.of(settings.get("heal"))
        repair = Text() if settings.get("repair") is True else settings.get("repair") or None
        if repair and "samples" not in given(repair):
            repair = replace(repair, samples=REPAIR_SAMPLES)
        if repair and (not isinstance(repair.samples, int) or repair.samples < JUDGING):
            raise InputError(f"{repair.samples} samples to repair on; give at least {JUDGING}", option="repair")
        in_rounds = heal and heal.options.layers_per_round
        if in_rounds and (repair or selection.layers or selection.strategy or selection.step):
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
    def size(self) -> tuple[str, Any]:
        """The model, and how much of it goes: trials of one size compete."""
        return self.model, next(goal for name in GOALS if (goal := getattr(self.selection, name)) is not None)

    def removed(self, model: Model) -> int:
        """Return how many layers go; 0 if nobody knows yet."""
        return layers_to_remove(self.selection, model.layers, model.sizes) if model.layers else 0

    def check_fits(self, model: Model) -> None:
        """Refuse a cut, or a healing of the last layers, that a model has too few layers for."""
        left = model.layers - self.removed(model)
        if self.heal and left:
            self.heal.options.config.method.check_fits(left)

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON-able data."""
        heal, selection = self.heal, dict(changed_options(self.selection))
        if "drop" in selection:
            selection["drop"] = show_drop(selection["drop"])
        return {
            "model": self.model,
            **selection,
            "calibration": _settings(self.calibration),
            "repair": _settings(self.repair),
            "heal": heal
            and {"name": heal.name, **given(heal.options), "data": ",".join(heal.options.config.text.words)},
            "layers_per_round": heal and heal.options.layers_per_round,
            "seed": self.seed,
        }

    @cached_property
    def id(self) -> str:
        return digest(self.settings())[:16]


def _settings(text: Text | None) -> dict[str, Any] | None:
    return asdict(text) | {"source": ",".join(text.words)} if text else None
