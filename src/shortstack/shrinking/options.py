"""The options of shrink(); the command line reads them before anything heavy is imported."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.data.mixture import MIX, SEVERAL, parse_sources
from shortstack.data.sources import TEXT
from shortstack.errors import InputError
from shortstack.evaluation import EvalConfig
from shortstack.evaluation.suites import named
from shortstack.machine.options import check_options, option, option_of
from shortstack.planning import Selection

LIMIT = 200  # documents of each task where nothing else is said
MINUTES = 15
GOALS = ("drop", "target_params", "target_size", "min_quality")


@dataclass(frozen=True)
class ShrinkOptions:
    """How a model is made shorter. length: tokens of a calibration window, at most."""

    drop: str | None = option(None, help="How much to remove: 25% or a count. Default: the recipe's, or 25%.")
    target_params: str | None = option_of(Selection, "target_params")
    target_size: str | None = option_of(Selection, "target_size")
    min_quality: str | None = option(
        None,
        help="Remove as many layers as possible while keeping this share, such as 95%, of likelihood, probes and tasks.",
    )
    recipe: str = option("best", help="A preset of `shortstack list recipes`, or a file.")
    data: str | None = option(
        None, help="Data to heal on; `best` chooses layers on it, too, unless text says on what. Default: the recipe's."
    )
    text: str | None = option(None, help=f"Calibration text: {TEXT} {SEVERAL} Default: the recipe's, or {MIX}.")
    samples: int | None = option(
        None,
        help="Calibration windows per text, of 128 tokens each. Default: the recipe's, or by the minutes.",
        minimum=4,
    )
    perplexity: str = option("pydoc", help="Comma-separated texts to measure on.")
    perplexity_samples: int = option(64, help="Maximum windows per text.", minimum=1)
    probe_items: int = option(
        20, help="Items of each generation probe, before and after; 0 for none.", minimum=0, maximum=100
    )
    tasks: str | None = option(
        None, help=f"Tasks to measure on, before and after; {LIMIT} documents of each unless limited."
    )
    limit: int | float | None = option(
        None, help="Only the first n documents of each task, or a share such as 10%.", minimum=1, shares=True
    )
    data_dir: str | None = option(None, help="A folder of .jsonl or .parquet files for standard tasks.")
    minutes: float | None = option(
        None, help=f"Time limit for the whole run. Default: {MINUTES}, or none for a recipe with every number.", above=0
    )
    length: int = 128

    def __post_init__(self) -> None:
        check_options(self)
        self._check_goal()
        if self.probe_items == 1:
            expected = "at least 2 items of each probe"
            raise InputError("1", expected=expected, fix="ask for more, or for 0: none", option="probe_items")
        for name in ("data", "text"):
            if getattr(self, name) is not None:
                parse_sources(getattr(self, name), name)
        for name in ("limit", "data_dir"):
            if self.tasks is None and getattr(self, name) is not None:
                fix = "add tasks, such as paper, or leave it out"
                raise InputError("none", expected="tasks to measure on", fix=fix, option=name)

    def _check_goal(self) -> None:
        """Refuse two goals, and a share that is none."""
        named = [name for name in GOALS if getattr(self, name) is not None]
        if len(named) > 1:
            conflict = f"{named[0]} as well"
            raise InputError(
                conflict,
                expected=f"{named[-1]} or {named[0]}, not both",
                fix="leave one out",
                option=named[-1],
            )
        share = self.min_quality
        if share is not None and (not re.fullmatch(r"\d{1,2}(\.\d+)?%", share) or not float(share[:-1])):
            expected = "a share above 0% and below 100%"
            raise InputError(repr(share), expected=expected, fix="ask for one, such as 95%", option="min_quality")

    @property
    def share(self) -> float | None:
        """The share that is to be kept; None where the cut is named otherwise.

        >>> ShrinkOptions(min_quality="95%").share
        0.95
        """
        return None if self.min_quality is None else float(self.min_quality.removesuffix("%")) / 100

    @property
    def texts(self) -> list[str]:
        """The texts to measure on; a file's name may have commas."""
        return [self.perplexity] if os.path.isfile(self.perplexity) else self.perplexity.split(",")

    def evaluation(self, windows: int, probe_items: int = 0) -> EvalConfig:
        """Return the texts and probes to measure on, as evaluate() takes them."""
        probes: dict[str, Any] = {"probes": True, "probe_items": probe_items} if probe_items else {}
        return EvalConfig(tuple(self.texts), num_samples=windows, **probes)

    def evaluation_tasks(self) -> list[EvalConfig]:
        """List the tasks to measure on, one by one, as evaluate() takes them."""
        names = [] if self.tasks is None else [name.strip() for name in self.tasks.split(",")]
        data = Path(self.data_dir) if self.data_dir else None
        return [EvalConfig((), tasks=named(name), limit=self.limit or LIMIT, data_dir=data) for name in names]
