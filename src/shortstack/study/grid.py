"""A study: a grid over the line, as a YAML file, and the trials that it spells out. Nothing is computed here.

models: [demo]              # a directory, a hub id (org/name@revision), a .gguf file, or demo
metrics: [reverse, ppl, angular block, search, layers 22-29]
calibration: [{text: pydoc, samples: 10, length: 128}]
drop: [25%, 8]              # or {from: 5, to: 75, step: 5}, in percent
strategy: [one-shot, step 1]
repair: [false, true]       # or {text: pydoc, samples: 256, length: 128}
heal: [none, paper-lora, {name: quick, method: lora, data: pydoc, num_train_epochs: 1}]
seeds: [0]

Every combination is a trial. `trials` adds more, `except` leaves some out; `evaluation` is the same for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from shortstack.errors import InputError
from shortstack.healing.methods import HealOptions as HealPart
from shortstack.healing.recipes import recipe_names
from shortstack.machine import yamlfile
from shortstack.machine.device import Compute
from shortstack.machine.options import options
from shortstack.machine.yamlfile import Part, part_of
from shortstack.runs.records import ONE_SHOT
from shortstack.study.step_types import KINDS, EvaluationOptions
from shortstack.study.trial import HealOptions, StudyCalibration, StudyRepair, Trial, read_setting


class PercentRange(Part):
    """Percentages from one to another, both included where the step meets them."""

    start: int = Field(alias="from", gt=0, lt=100)
    to: int = Field(gt=0, lt=100)
    step: int = Field(gt=0)

    @property
    def values(self) -> list[str]:
        return [f"{percent}%" for percent in range(self.start, self.to + 1, self.step)]


class ComputeOptions(part_of("ComputeOptions", Compute, only=("device", "dtype"), bounded=True)):  # type: ignore[misc]  # made of options
    """Where and in what to compute."""


class Resources(Part):
    """The resources of a step of one kind; memory in GB. gpus: by default one where there are any, but for the CPU."""

    cpus: float = Field(default=1, gt=0)
    gpus: float | None = Field(default=None, ge=0)
    memory: float | None = Field(default=None, gt=0)


if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[KINDS]


@options
class HealEntry(HealPart):
    """A way to heal: a name for it, a recipe to start from, and options of heal."""

    name: str | None = None
    recipe: str | None = None


Seed = Annotated[int, Field(ge=0, lt=2**32)]
HealValue = str | None | HealEntry
RepairValue = bool | StudyRepair
DropValue = str | int | PercentRange | list[str | int]
CalibrationValue = StudyCalibration | list[StudyCalibration]


class TrialSettings(Part):
    """Some of the settings of trials; each may be a list."""

    model: str | list[str] | None = None
    metric: str | list[str] | None = None
    calibration: CalibrationValue | None = None
    drop: DropValue | None = None
    strategy: str | list[str] | None = None
    repair: RepairValue | list[RepairValue] | None = None
    heal: HealValue | list[HealValue] = None
    seed: Seed | list[Seed] | None = None

    def axes(self) -> dict[str, Sequence[Any]]:
        """Return the values given here by name, each as a list."""
        return {name: _listed(getattr(self, name)) for name in type(self).model_fields if name in self.model_fields_set}


class Study(Part):
    """A grid over models, metrics, calibration, drop, strategy, repair, healing and seeds."""

    title: str = ""
    models: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    calibration: CalibrationValue = StudyCalibration()
    drop: DropValue = "25%"
    strategy: str | list[str] = ONE_SHOT
    repair: RepairValue | list[RepairValue] = False
    heal: HealValue | list[HealValue] = None
    seeds: tuple[Seed, ...] = (0,)
    trials_: tuple[TrialSettings, ...] = Field(default=(), alias="trials")
    except_: tuple[TrialSettings, ...] = Field(default=(), alias="except")
    evaluation: EvaluationOptions = EvaluationOptions()
    compute: ComputeOptions = ComputeOptions()
    resources: Mapping[Kind, Resources] = Field(default_factory=dict)

    @field_validator("models", "seeds")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("at least one")
        return value

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial once, in order."""
        named = self._named_healings()
        left_out = [
            {name: [read_setting(name, value, named) for value in values] for name, values in excluded.axes().items()}
            for excluded in self.except_
        ]
        trials: dict[str, Trial] = {}
        for settings in self._settings():
            trial = Trial.of({name: read_setting(name, value, named) for name, value in settings.items()})
            if not any(all(getattr(trial, name) in values for name, values in axes.items()) for axes in left_out):
                trial.check()
                trials.setdefault(trial.id, trial)
        return tuple(trials.values())

    def _settings(self) -> Iterator[dict[str, Any]]:
        """Yield the settings of the grid's trials, then of those added, which take the grid's first where they name none."""
        between = ("calibration", "drop", "strategy", "repair", "heal")
        grid: dict[str, Sequence[Any]] = {
            "model": self.models,
            "metric": self.metrics,
            **{name: _listed(getattr(self, name)) for name in between},
            "seed": self.seeds,
        }
        yield from _combined(grid)
        for some in self.trials_:
            first = {name: values[:1] for name, values in grid.items()}
            axes = {**first, **some.axes()}
            if not axes["metric"]:
                raise InputError("none", expected="a metric in each", fix="add metric: ppl", where="trials")
            yield from _combined(axes)

    def _named_healings(self) -> dict[str, HealOptions]:
        entries = [entry for heal in (self.heal, *(some.heal for some in self.trials_)) for entry in _listed(heal)]
        named: dict[str, HealOptions] = {}
        for way in (HealOptions.of(entry, {}) for entry in entries if isinstance(entry, HealPart)):
            if way and named.setdefault(way.name, way) != way:
                expected, two = "one way to heal of each name", f"two named {way.name}"
                raise InputError(two, expected=expected, fix="give each a name of its own", where="heal")
        recipes = {*recipe_names(), *(entry.recipe for entry in entries if isinstance(entry, HealEntry))}
        for name in (entry for entry in entries if isinstance(entry, str) and entry in recipes & named.keys()):
            if HealOptions.of(name, {}) != named[name]:
                expected, fix = "one way to heal of each name", "give the one with other options a name of its own"
                raise InputError(f"{name}, and {name} with other options", expected=expected, fix=fix, where="heal")
        return named


def read_study(path: str | Path) -> Study:
    return parse_study(yamlfile.text_of(path), where=str(path))


def parse_study(text: str, *, where: str) -> Study:
    """Return a study from the text of its file."""
    study = yamlfile.parsed(text, Study, where=where)
    with in_file(where, text=text):
        trials = study.trials
    if not trials:
        raise InputError("none", expected="at least one trial", fix="name metrics, or trials", where=where)
    return study


@contextmanager
def in_file(path: str | Path, *within: str, text: str | None = None) -> Iterator[None]:
    """Raise an error about a key of a study's file, or a value, as one that names file and line; within: what it is in."""
    try:
        yield
    except InputError as error:
        text = text or yamlfile.text_of(path)
        if error.option and error.where and yamlfile.line_saying(text, error.where):
            error = error.but(option="")  # the line of the value says more than that of its key
        named = error.option or error.where.rpartition(": ")[2]
        line = yamlfile.line_of(text, *within, named) if within else None
        found = error.found.strip("'")
        said = found if found != "none" else named  # many a line says none
        line = line or yamlfile.line_saying(text, said) or yamlfile.line_saying(text, named)
        raise error.in_file(f"{path}, line {line}" if line else str(path)) from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of a study's file, for editors."""
    return Study.model_json_schema(by_alias=True)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, PercentRange):
        return value.values
    return value if isinstance(value, list) else [value]


def _combined(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))
