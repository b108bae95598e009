"""A study: a grid over the line, as a YAML file, and the trials that it spells out. Nothing is computed here.

models: [demo]              # a directory, a hub id (org/name@revision), a .gguf file, or demo
metrics: [reverse, ppl, angular block, search, layers 22-29]
calibration: [{text: pydoc, samples: 10, length: 128}]
drop: [25%, 8]              # or {from: 5, to: 75, step: 5}, in percent
strategy: [one-shot, step 1]
repair: [false, true]       # or {text: pydoc, samples: 256, length: 128}
heal: [none, paper-lora, {name: quick, method: lora, data: pydoc, epochs: 1}]
seeds: [0]

Every combination is a trial. `trials` adds more, `except` leaves some out; `evaluation` is the same for all of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator

from shortstack import yamlfiles
from shortstack.errors import InputError
from shortstack.healing_options import check_healing, heal_groups
from shortstack.metrics import metric_named
from shortstack.planning import check_choice, parse_layers
from shortstack.recipe import HealPart, read_recipe
from shortstack.yamlfiles import Part

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


class Steps(Part):
    """Percentages from one to another."""

    start: int = Field(alias="from", gt=0, lt=100)
    to: int = Field(gt=0, lt=100)
    step: int = Field(gt=0)

    @property
    def drops(self) -> list[str]:
        return [f"{percent}%" for percent in range(self.start, self.to + 1, self.step)]


class Speeds(Part):
    """What profile() measures."""

    batch_sizes: tuple[int, ...] = (1, 8)
    prompt: int = Field(default=128, ge=1)
    new_tokens: int = Field(default=32, ge=1)


class Judging(Part):
    """How every checkpoint is measured. pruned: also before it heals; seed: of the windows that are drawn."""

    perplexity: tuple[str, ...] = ("pydoc",)
    length: int = Field(default=512, ge=2)
    samples: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    tasks: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    data_dir: str | None = None
    include: str | None = None
    probe_items: int = Field(default=0, ge=0)
    collapse: bool | None = None
    pruned: bool = True
    profile: bool | Speeds = False


class Computing(Part):
    """Where and in what to compute."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class Needs(Part):
    """What a step of one kind takes of a machine; memory in GB."""

    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    memory: float | None = Field(default=None, gt=0)


if TYPE_CHECKING:  # made of heal's own options, which mypy cannot follow

    class HealEntry(Part):
        """A way to heal: a name for it, a recipe to start from, and options of heal."""

else:
    HealEntry = create_model("HealEntry", __base__=HealPart, name=(str | None, None), recipe=(str | None, None))
HealValue = str | None | HealEntry
RepairValue = bool | Refit
Kind = Literal["score", "plan", "prune", "heal", "turns", "evaluate", "profile"]


class Some(Part):
    """Part of the settings of trials; each may be a list."""

    model: str | list[str] | None = None
    metric: str | list[str] | None = None
    calibration: Calibration | list[Calibration] | None = None
    drop: str | int | Steps | list[str | int] | None = None
    strategy: str | list[str] | None = None
    repair: RepairValue | list[RepairValue] | None = None
    heal: HealValue | list[HealValue] = None
    seed: int | list[int] | None = None

    def axes(self) -> dict[str, Sequence[Any]]:
        """What is named here, each as a list."""
        return {name: _listed(getattr(self, name)) for name in Some.model_fields if name in self.model_fields_set}


class Study(Part):
    """A grid over models, metrics, calibration, drop, strategy, repair, healing and seeds."""

    title: str = ""
    models: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    calibration: Calibration | list[Calibration] = Calibration()
    drop: str | int | Steps | list[str | int] = "25%"
    strategy: str | list[str] = ONE_SHOT
    repair: RepairValue | list[RepairValue] = False
    heal: HealValue | list[HealValue] = None
    seeds: tuple[int, ...] = (0,)
    trials_: tuple[Some, ...] = Field(default=(), alias="trials")
    except_: tuple[Some, ...] = Field(default=(), alias="except")
    evaluation: Judging = Judging()
    compute: Computing = Computing()
    resources: Mapping[Kind, Needs] = Field(default_factory=dict)

    @field_validator("models", "seeds")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("at least one")
        return value

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial once, in order.

        Raises:
            InputError: a combination that cannot be, or a name that is unknown.
        """
        named = self._named_healings()
        left_out = [_Pattern.of(each, named) for each in self.except_]
        found = (Trial.of(settings, named) for settings in self._settings())
        kept = [trial for trial in found if not any(pattern.matches(trial) for pattern in left_out)]
        for trial in kept:
            trial.check()
        return tuple({trial.id: trial for trial in reversed(kept)}[id_] for id_ in dict.fromkeys(t.id for t in kept))

    def _settings(self) -> Iterator[dict[str, Any]]:
        """The settings of the grid's trials, then of those added to it, which take the grid's first where they name none."""
        grid: dict[str, Sequence[Any]] = {
            "model": self.models,
            "metric": self.metrics,
            "calibration": _listed(self.calibration),
            "drop": _listed(self.drop),
            "strategy": _listed(self.strategy),
            "repair": _listed(self.repair),
            "heal": _listed(self.heal),
            "seed": self.seeds,
        }
        yield from _combined(grid)
        for some in self.trials_:
            first = {name: values[:1] for name, values in grid.items()}
            axes = {**first, **some.axes()}
            if not axes["metric"]:
                raise InputError("trials", expected="a metric in each", found="none", fix="add metric: ppl")
            yield from _combined(axes)

    def _named_healings(self) -> dict[str, Healing]:
        """The ways to heal that the file gives a name."""
        places = [self.heal, *(some.heal for some in self.trials_)]
        entries = [entry for place in places for entry in _listed(place) if isinstance(entry, HealPart)]
        found: dict[str, Healing] = {}
        for entry in entries:
            healing = Healing.of(entry, {})
            assert healing  # noqa: S101  an entry is a way to heal
            if found.setdefault(healing.name, healing) != healing:
                raise InputError(
                    "heal",
                    expected="one way to heal of each name",
                    found=f"two named {healing.name}",
                    fix="give each a name of its own",
                )
        return found


def read_study(path: str | Path) -> Study:
    """A study from its YAML file.

    Raises:
        InputError: it cannot be read, or is wrong: with the line, and the nearest right key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, expected="a YAML file", found=str(error), fix="check the path") from error
    return parse_study(text, where=str(path))


def parse_study(text: str, *, where: str) -> Study:
    """A study from the text of its file.

    Raises:
        InputError: as read_study.
    """
    study = yamlfiles.parsed(text, Study, where=where)
    try:
        found = study.trials
    except InputError as error:  # said of an option of the command line
        place = f"{where}: {error.where.removeprefix('--')}"
        raise InputError(place, expected=error.expected, found=error.found, fix=error.fix) from error
    if not found:
        raise InputError(where, expected="at least one trial", found="none", fix="name metrics, or trials")
    return study


def schema() -> dict[str, Any]:
    """The JSON schema of a study's file, for editors."""
    return Study.model_json_schema(by_alias=True)


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
        check_healing(*heal_groups(options))
        return cls(str(name), tuple(sorted(options.items())))

    def arguments(self, seed: int) -> dict[str, Any]:
        """Every option, with its default where none is set."""
        groups = heal_groups({**dict(self.options), "seed": seed})
        found = {name: value for group in groups for name, value in asdict(group).items()}
        found.pop("teacher")
        return found


_AXES = {"step": "write strategy: step 1 in the study", "seed": "write seeds: [0] in the study"}


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
        return self.search or (self.metric is not None and metric_named(self.metric).feed not in ("layers", "weights"))

    @property
    def scored(self) -> bool:
        """Whether it needs the scores of the whole model."""
        return self.metric is not None and metric_named(self.metric).feed != "layers"

    @property
    def seeded(self) -> bool:
        """Whether the same text and another seed may choose other layers."""
        return self.search or self.metric in ("random", "random-authors")


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
class _Pattern:
    """Settings of trials to leave out: a trial matches that has one of the values of each."""

    values: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, some: Some, named: Mapping[str, Healing]) -> _Pattern:
        axes = some.axes()
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


def _listed(value: Any) -> list[Any]:
    if isinstance(value, Steps):
        return [*value.drops]
    return value if isinstance(value, list) else [value]


def _combined(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def expanded(value: Any) -> Any:
    """The same data with $NAME and ${NAME} in its strings replaced by the environment's.

    Raises:
        InputError: there is no such variable.
    """
    if isinstance(value, Mapping):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [expanded(item) for item in value]
    if not isinstance(value, str):
        return value
    found = os.path.expandvars(value)
    missing = re.search(r"\$\{?([A-Za-z_]\w*)", found)
    if missing:
        raise InputError(value, expected=f"an environment variable {missing[1]}", found="none", fix="set it")
    return found
