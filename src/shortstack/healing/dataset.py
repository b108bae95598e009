"""What a model learns from, in numbers: how many samples, of what length, and how many of them are held out."""

from __future__ import annotations

from dataclasses import dataclass

from shortstack.errors import DataError, InputError, parameter

HELD_OUT_SHARE = 0.05


def kept_back(samples: int, held_out: int | None = None) -> int:
    """How many of so many samples are held out: as many as was said, else a share."""
    return held_out or max(1, round(samples * HELD_OUT_SHARE))


@dataclass(frozen=True)
class Lessons:
    """What is learnt from; the fields are heal()'s."""

    data: str
    max_length: int = 256
    max_samples: int | None = None
    held_out: int | None = None
    self_generate: bool = False

    def check(self) -> None:
        """Refuse numbers that leave nothing to learn."""
        for name, least in (("max_length", 4), ("max_samples", 2), ("held_out", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(parameter(name), expected=f"at least {least}", found=str(value), fix="ask for more")
        if self.max_samples is not None and (self.held_out or 0) >= self.max_samples:
            raise InputError(
                parameter("held_out"),
                expected=f"fewer than the {self.max_samples} samples of "
                f"{parameter('max_samples')}, or none is left to train on",
                found=str(self.held_out),
                fix=f"write {parameter('held_out', kept_back(self.max_samples))}, or raise {parameter('max_samples')}",
            )

    def held_out_of(self, samples: int) -> int:
        """How many of the samples are held out.

        Raises:
            DataError: none would be left to train on.
        """
        held_out = kept_back(samples, self.held_out)
        if samples <= held_out:
            raise DataError(
                self.data,
                expected=f"more than the {held_out} samples that are held out",
                found=str(samples),
                fix=f"give more data, or a smaller {parameter('held_out')}",
            )
        return held_out
