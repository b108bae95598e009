"""The options of shrink(); the command line reads them before anything heavy is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shortstack.data.mixture import MIX, SEVERAL
from shortstack.data.sources import TEXT
from shortstack.errors import InputError, parameter
from shortstack.machine.options import check_options, option

ALL = "all"


@dataclass(frozen=True)
class ShrinkOptions:
    """How a model is made shorter. length: tokens of a calibration window."""

    drop: str | None = option(None, help="How much to remove: 25% or a count. Default: the recipe's, or 25%.")
    params: str | None = option(None, help="In its place: as few layers go as leave so many parameters: 6B, 350M.")
    memory: str | None = option(None, help="In its place: as few layers go as leave so many bytes of weights: 4GB.")
    recipe: str = option("best", help="A preset of `shortstack ls recipes`, or a file.")
    data: str | None = option(None, help="What to heal on. Default: the recipe's, if it names data.")
    text: str = option(MIX, help=f"Calibration text: {TEXT} {SEVERAL}")
    samples: int = option(16, help="Calibration windows of each text, of 128 tokens.", minimum=4)
    perplexity: str = option("pydoc", help="Comma-separated texts to measure on.")
    perplexity_samples: str = option("64", help="Windows of each of them, or all.")
    probe_items: int = option(
        20, help="Items of each probe of writing, before and after; 0 for none.", minimum=0, maximum=100
    )
    minutes: float = option(15.0, help="How long all of it may take; what must be cut for time is said.", above=0)
    length: int = 128

    def __post_init__(self) -> None:
        check_options(self)
        if self.perplexity_samples != ALL and not re.fullmatch(r"[1-9]\d{0,8}", self.perplexity_samples):
            raise InputError(
                parameter("perplexity_samples"),
                expected=f"a number of windows, or {ALL}",
                found=self.perplexity_samples,
                fix=f"write {parameter('perplexity_samples', ALL)}",
            )

    @property
    def judged(self) -> int | None:
        """Windows of each text that is measured on; None: all."""
        return None if self.perplexity_samples == ALL else int(self.perplexity_samples)

    @property
    def texts(self) -> list[str]:
        """The texts to measure on."""
        return [name.strip() for name in self.perplexity.split(",")]
