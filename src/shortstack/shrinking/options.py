"""Settings of shrink(); the command line reads them before anything heavy is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from shortstack.data import Sources
from shortstack.data.text import SOURCES_HELP
from shortstack.errors import InputError
from shortstack.evaluation import EvalConfig
from shortstack.evaluation.options import TaskNames, TextNames
from shortstack.machine.options import Amount, options

DOCUMENTS = 200  # of each task, unless limited
MINUTES = 15
GOALS = ("drop", "target_params", "target_size", "min_quality")


@options
class ShrinkOptions:
    """Settings of shrink()."""

    drop: Amount | None = Field(
        None, description="How much to remove: 25% of the layers or a count. Default: the recipe's, or 25%."
    )
    target_params: str | None = Field(
        None, description="Remove the fewest layers that bring the model down to this many parameters: 6B, 350M."
    )
    target_size: str | None = Field(
        None, description="Remove the fewest layers that bring the weights down to this size: 4GB."
    )
    min_quality: str | None = Field(
        None,
        description="Remove as many layers as keep this share, such as 95%, of likelihood, probes and tasks.",
    )
    recipe: str = Field("best", description="A preset of `shortstack list recipes`, or a file.")
    data: Sources | None = Field(
        None,
        description="Data to heal on; `best` chooses layers on it, too. Repeat for several; NAME=WEIGHT gives a weight.",
    )
    calibration_data: Sources | None = Field(
        None, description=f"Text to choose layers on: {SOURCES_HELP} Default: the recipe's."
    )
    num_samples: int | None = Field(
        None, ge=4, description="Calibration windows of each text, of 128 tokens. Default: what the minutes allow."
    )
    perplexity: TextNames = Field(("pydoc",), description="Texts to measure on.")
    perplexity_samples: int = Field(64, ge=1, description="Windows of each text to measure on, at most.")
    probe_items: int = Field(20, ge=0, le=100, description="Items of each generation probe; 0 for no probes.")
    tasks: TaskNames = Field((), description=f"Tasks to measure on; {DOCUMENTS} documents of each unless limited.")
    limit: Amount | None = Field(None, description="Documents of each task, or a share such as 10%.")
    data_dir: Path | None = Field(None, description="A folder of .jsonl or .parquet files for standard tasks.")
    minutes: float | None = Field(
        None, gt=0, description=f"Time limit in minutes. Default: {MINUTES}; none for a recipe with every number."
    )

    def __post_init__(self) -> None:
        goals = [name for name in GOALS if getattr(self, name) is not None]
        if len(goals) > 1:
            raise InputError(f"give {goals[0]} or {goals[1]}, not both", option=goals[1])
        if self.min_quality and not (re.fullmatch(r"\d{1,2}(\.\d+)?%", self.min_quality) and self.share):
            raise InputError(f"{self.min_quality!r} is no share; give one such as 95%", option="min_quality")
        if not self.perplexity:
            raise InputError("both models are compared on a text; name one, such as pydoc", option="perplexity")
        if self.probe_items == 1:
            raise InputError("one item of each probe has no error; give 0, or at least 2", option="probe_items")
        for name in ("limit", "data_dir"):
            if not self.tasks and getattr(self, name) is not None:
                raise InputError("it has no effect without tasks; add tasks, such as paper", option=name)

    @property
    def share(self) -> float | None:
        """Share of quality that min_quality keeps; None where another goal is given."""
        return float(self.min_quality.removesuffix("%")) / 100 if self.min_quality else None

    def evaluation(self, windows: int, probe_items: int, documents: int | float) -> EvalConfig:
        """Return the settings of both models' evaluations."""
        texts = self.perplexity if windows else ("none",)
        wanted: dict[str, Any] = {"probes": True, "probe_items": probe_items} if probe_items else {}
        if self.tasks and documents:
            wanted |= {"tasks": self.tasks, "limit": documents, "data_dir": self.data_dir}
        return EvalConfig(texts, num_samples=windows or None, **wanted)
