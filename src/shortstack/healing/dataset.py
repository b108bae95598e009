"""The data that a model learns from: its source, the length and the number of samples, and how many are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shortstack.data import Example
from shortstack.data.in_context import IN_CONTEXT
from shortstack.data.mixture import SEVERAL, check_sources, parse_sources
from shortstack.data.sources import OWN, SOURCES
from shortstack.errors import DataError, InputError
from shortstack.machine.options import check_options, option

HELD_OUT_SHARE = 0.05
DATA = (
    f"Text or instructions: {', '.join([*SOURCES, *IN_CONTEXT])}, .txt, .jsonl or .json (text, alpaca, dolly, "
    f"chat or prompt), or a hub dataset. {SEVERAL}"
)


@dataclass(frozen=True)
class TrainingData:
    """The training data of a healing.

    data: sources by name, as source_of() gives them of rows in memory. max_samples counts the held-out ones, too; a
    float is a share of what there is.
    """

    data: str | None = option(None, help=DATA)
    max_length: int = option(256, help="Longest sample, in tokens.", minimum=4)
    max_samples: int | float | None = option(
        None,
        help="Use at most this many samples, including held-out ones, or a share such as 10%.",
        minimum=2,
        shares=True,
    )
    held_out: int | None = option(None, help="Samples held out from training. Default: 5 %.", minimum=1)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def own(self) -> bool:
        """Whether a teacher writes a part of it."""
        return bool(self.data and any(part.source == OWN for part in parse_sources(self.data)))

    @property
    def source(self) -> str:
        """Where the samples come from; refused where nothing was named."""
        if not self.data:
            fix = "name some, such as pydoc"
            raise InputError("none", expected="text or instructions to learn from", fix=fix, option="data")
        return self.data

    def check(self) -> None:
        """Refuse data that is not named or not there, before minutes of work; the hub is not asked."""
        check_sources(self.source)

    def held_out_of(self, samples: int) -> int:
        """Count the held-out ones of the samples that were read, and refuse where none is left to train on."""
        return self._leaving_some(self.held_out or max(1, round(samples * HELD_OUT_SHARE)), samples)

    def held_out_among(self, examples: Sequence[Example]) -> int:
        """Count the held-out examples, from the first on: a few more where the line would cut a conversation."""
        line, samples = self.held_out_of(len(examples)), len(examples)
        whole = next((place for place in range(line, samples) if not examples[place].follows), samples)
        return self._leaving_some(whole, samples)

    def _leaving_some(self, held_out: int, samples: int) -> int:
        if samples <= held_out:
            raise DataError(
                f"{samples} sample{'s' * (samples != 1)}, of which {held_out} would be held out",
                expected="at least one sample to train on besides the held-out ones",
                fix="give more data, raise max_samples, or hold out fewer",
                option="held_out",
                where=self.source,
            )
        return held_out
