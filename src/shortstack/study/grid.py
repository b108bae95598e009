"""A study's file: options of the command line, of which each may be a list, and the trials that they make.

model: [demo]               # a directory, a hub id (org/name@revision), a .gguf file, or demo
metric: [reverse, ppl]
calibration: {source: pydoc, samples: 10, length: 128}
drop: [25%, 8]
repair: [false, true]       # or {source: pydoc, samples: 256, length: 128}
heal: [none, paper-lora, {name: quick, method: lora, data: pydoc, num_train_epochs: 1}]
seed: [0]

Every combination is a trial. `trials` adds more, `except` leaves some out; `evaluation` is the same for all of them.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field, model_validator

from shortstack.data import Text
from shortstack.errors import InputError
from shortstack.evaluation import EvalConfig
from shortstack.machine import yamlfile
from shortstack.machine.yamlfile import Part
from shortstack.profiling import Timing
from shortstack.study.trial import HealEntry, Trial

Value = TypeVar("Value")
Several: TypeAlias = Value | list[Value]
WHICH, AMOUNT = ("metric", "strategy", "layers"), ("drop", "target_params", "target_size", "layers")


class Settings(Part):
    """Settings of trials; each may be a list."""

    model: Several[str] | None = None
    metric: Several[str] | None = None
    strategy: Several[str] | None = None
    layers: Several[str] | None = None
    drop: Several[str | int] | None = None
    target_params: Several[str] | None = None
    target_size: Several[str] | None = None
    step: Several[int] | None = None
    candidates: Several[int] | None = None
    keep_first: Several[int] | None = None
    keep_last: Several[int] | None = None
    calibration: Several[Text] | None = None
    repair: Several[bool | Text] | None = None
    heal: Several[str | HealEntry] | None = None
    seed: Several[Annotated[int, Field(ge=0, lt=2**32)]] | None = None

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The values of each setting of the file."""
        values = {name: getattr(self, name) for name in Settings.model_fields if name in self.model_fields_set}
        return {name: value if isinstance(value, list) else [value] for name, value in values.items()}


class Resources(Part):
    """Resources of a step on a Ray cluster; memory in GB. gpus: by default one if there are any, unless on the CPU."""

    cpus: float = Field(default=1, gt=0)
    gpus: float | None = Field(default=None, ge=0)
    memory: float | None = Field(default=None, gt=0)


class Study(Settings):
    """A grid of settings, and how its models are measured. evaluate_pruned: also before they heal."""

    title: str = ""
    trials_: tuple[Settings, ...] = Field(default=(), alias="trials")
    except_: tuple[Settings, ...] = Field(default=(), alias="except")
    evaluation: EvalConfig = EvalConfig()
    evaluate_pruned: bool = True
    profile: bool | Timing = False
    device: str = "auto"
    dtype: str = "auto"
    resources: Mapping[str, Resources] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        return expanded(data)

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial once, in the order of the file."""
        excluded = [settings.axes for settings in self.except_]
        trials = dict[str, Trial]()
        for settings in self._combinations():
            if not any(all(settings.get(name) in values for name, values in axes.items()) for axes in excluded):
                trial = Trial.of(settings)
                trials.setdefault(trial.id, trial)
        return tuple(trials.values())

    @property
    def models(self) -> list[str]:
        """Every base model and every other teacher, once."""
        teachers = [trial.heal.options.teacher for trial in self.trials if trial.heal and trial.heal.options.teacher]
        return list(dict.fromkeys([*(trial.model for trial in self.trials), *teachers]))

    def _combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the settings of the grid, and of added trials, which take the grid's first value where they name none."""
        grid = self.axes
        if grid.keys() & {*WHICH}:
            yield from _combined(grid)
        for added in (settings.axes for settings in self.trials_):
            replaced = {name for group in (WHICH, AMOUNT) if added.keys() & {*group} for name in group}
            first = {name: values[:1] for name, values in grid.items() if name not in replaced}
            yield from _combined({**first, **added})


def read_study(path: str | Path) -> Study:
    """Read and check a study's file.

    Raises:
        InputError: a key or a value is wrong; the message names its line.
    """
    text = yamlfile.text_of(path)
    with yamlfile.lines_of(str(path), text):
        study = yamlfile.parsed(text, Study, where=str(path))
        trials = study.trials
    if not trials:
        raise InputError(f"{path} has no trials; name a metric, a strategy or layers")
    return study


def schema() -> dict[str, Any]:
    """Return the JSON schema of a study's file, for editors."""
    return Study.model_json_schema(by_alias=True)


def expanded(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Replace $NAME and ${NAME} in all strings of a value by the environment's. seen: aliases, each is read once."""
    seen = {} if seen is None else seen
    if isinstance(value, dict | list) and id(value) not in seen:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        items = {expanded(key): expanded(item, seen) for key, item in pairs}
        seen[id(value)] = items if isinstance(value, dict) else [*items.values()]
    if isinstance(value, dict | list):
        return seen[id(value)]
    text = os.path.expandvars(value) if isinstance(value, str) else value
    if isinstance(text, str) and (unset := re.search(r"\$\{?([A-Za-z_]\w*)", text)):
        raise InputError(f"{value}: the environment has no {unset[1]}; export {unset[1]}=...")
    return text


def _combined(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))
