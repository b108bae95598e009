"""The options of shrink(); the command line reads them before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shortstack.data.mixture import MIX, SEVERAL
from shortstack.data.sources import TEXT
from shortstack.machine.options import check_options, option

BEST = "best"


@dataclass(frozen=True)
class ShrinkOptions:
    """How a model is made shorter. length: tokens of a calibration window."""

    drop: str | None = option(None, help="How much to remove: 25% or a count. Default: the recipe's, or 25%.")
    recipe: str = option(
        BEST, help="best, which chooses between plans; a preset of `shortstack ls recipes`; or a file."
    )
    data: str | None = option(None, help="What to heal on. Default: the recipe's, if it names data.")
    text: str = option(MIX, help=f"Calibration text: {TEXT} {SEVERAL}")
    samples: int = option(32, help="Calibration windows of each text, of 128 tokens.", minimum=4)
    perplexity: str = option("pydoc", help="Comma-separated texts to measure on.")
    length: int = 128

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def repair(self) -> dict[str, Any]:
        """What repair looks at, as a study has it."""
        return {"text": self.text, "length": self.length}

    @property
    def texts(self) -> list[str]:
        """The texts to measure on."""
        return [name.strip() for name in self.perplexity.split(",")]
