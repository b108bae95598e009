"""How speed is measured, as options. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shortstack.errors import InputError
from shortstack.machine.options import check_options, option


@dataclass(frozen=True)
class Timing:
    """The runs that speed is measured by.

    batch_size: sequences at once: numbers, or text with commas between them; none for no runs. prompt: also the tokens that
    multiply-accumulates are counted over.
    """

    batch_size: str | int | Sequence[int] = option("1,8", help="Batch sizes: one, or several with commas.")
    prompt: int = option(128, help="Prompt length in tokens; MACs are counted over it, too.", minimum=1)
    new_tokens: int = option(32, help="Tokens to generate after the first.", minimum=1)
    repeats: int = option(6, help="Timed runs, after one warm-up run.", minimum=1)

    def __post_init__(self) -> None:
        check_options(self)
        if not all(size.isdecimal() and int(size) for size in self._sizes):
            raise InputError(
                repr(self.batch_size),
                expected="numbers above 0, with commas between",
                fix="write it like 1,8",
                option="batch_size",
            )

    @property
    def _sizes(self) -> list[str]:
        sizes = str(self.batch_size).split(",") if isinstance(self.batch_size, str | int) else self.batch_size
        return [str(size).strip() for size in sizes]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sequences at once, each number one time.

        >>> Timing("8, 1,8").batch_sizes
        (8, 1)
        """
        return tuple(dict.fromkeys(map(int, self._sizes)))
