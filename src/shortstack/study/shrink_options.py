"""The options of shrink(); the command line reads them before anything heavy is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shortstack.data.mixture import MIX, SEVERAL
from shortstack.data.sources import TEXT
from shortstack.errors import InputError, parameter
from shortstack.machine.formats import count_of
from shortstack.machine.options import check_options, option

ALL = "all"


@dataclass(frozen=True)
class ShrinkOptions:
    """How a model is made shorter. length: tokens of a calibration window."""

    drop: str | None = option(None, help="How much to remove: 25% or a count. Default: the recipe's, or 25%.")
    params: str | None = option(None, help="In its place: as few layers go as leave so many parameters: 6B, 350M.")
    memory: str | None = option(None, help="In its place: as few layers go as leave so many bytes of weights: 4GB.")
    keep: str | None = option(
        None, help="In its place: the largest cut that keeps such a share, as 95%, of likelihood, probes and tasks."
    )
    recipe: str = option("best", help="A preset of `shortstack ls recipes`, or a file.")
    data: str | None = option(None, help="What to heal on. Default: the recipe's, if it names data.")
    text: str = option(MIX, help=f"Calibration text: {TEXT} {SEVERAL}")
    samples: int = option(16, help="Calibration windows of each text, of 128 tokens.", minimum=4, counted=True)
    perplexity: str = option("pydoc", help="Comma-separated texts to measure on.")
    perplexity_samples: str = option("64", help="Windows of each of them, or all.")
    probe_items: int = option(
        20, help="Items of each probe of writing, before and after; 0 for none.", minimum=0, maximum=100
    )
    tasks: str | None = option(
        None, help="Tasks to measure on, before and after, of those that are read from a data folder."
    )
    limit: int | float = option(
        200, help="Only the first n documents of each task, or 10%.", minimum=1, counted=True, shares=True
    )
    data_dir: str | None = option(None, help="A folder of .jsonl or .parquet files for standard tasks.")
    minutes: float = option(15.0, help="How long all of it may take; what must be cut for time is said.", above=0)
    length: int = 128

    def __post_init__(self) -> None:
        check_options(self)
        if self.keep is not None:
            self._check_keep(self.keep)
        if self.perplexity_samples != ALL and not count_of(self.perplexity_samples):
            raise InputError(
                parameter("perplexity_samples"),
                expected=f"a number of windows, or {ALL}",
                found=self.perplexity_samples,
                fix=f"write {parameter('perplexity_samples', ALL)}",
            )

    @property
    def share(self) -> float | None:
        """The share that is to be kept; None where the cut is named otherwise.

        >>> ShrinkOptions(keep="95%").share
        0.95
        """
        return None if self.keep is None else float(self.keep.removesuffix("%")) / 100

    @property
    def asked_tasks(self) -> dict[str, Any]:
        """The tasks to measure on, as a study has them."""
        if self.tasks is None:
            return {}
        names = [name.strip() for name in self.tasks.split(",")]
        return {"tasks": names, "limit": self.limit, "data_dir": self.data_dir}

    @property
    def judged(self) -> int | None:
        """Windows of each text that is measured on; None: all."""
        return None if self.perplexity_samples == ALL else count_of(self.perplexity_samples)

    def _check_keep(self, keep: str) -> None:
        """Refuse what is no share, and what says how much goes beside it."""
        beside = next((name for name in ("drop", "params", "memory") if getattr(self, name) is not None), None)
        if beside:
            where, found = parameter("keep"), f"{parameter(beside)} beside it"
            raise InputError(where, expected="nothing else that says how much goes", found=found, fix="give one")
        if not re.fullmatch(r"\d{1,2}(\.\d+)?%", keep) or not float(keep[:-1]):
            where, fix = parameter("keep"), f"write {parameter('keep', '95%')}"
            raise InputError(where, expected="a share between 0% and 100%", found=repr(keep), fix=fix)

    @property
    def texts(self) -> list[str]:
        """The texts to measure on."""
        return [name.strip() for name in self.perplexity.split(",")]
