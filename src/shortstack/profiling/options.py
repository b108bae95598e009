"""Options of how speed is measured."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from shortstack.machine.options import options


def _sizes(value: Any) -> str:
    """Write batch sizes with commas between, each once: of one number, of several, or of such a text."""
    parts = str(value).split(",") if isinstance(value, str | int) else value or ()
    sizes = dict.fromkeys(str(part).strip() for part in parts)
    if not all(size.isdecimal() and int(size) for size in sizes) and value != "":
        raise PydanticCustomError("sizes", "give numbers above 0, such as 1,8")
    return ",".join(sizes)


@options
class Timing:
    """Settings of how speed is measured. batch_size: several with commas, or a sequence; an empty one measures no speed.

    >>> Timing((8, 1, 8)).batch_sizes
    (8, 1)
    """

    batch_size: Annotated[str, BeforeValidator(_sizes)] = Field(
        "1,8", description="Batch sizes: one, or several with commas."
    )
    prompt: int = Field(128, ge=1, description="Prompt length in tokens; MACs are counted over it, too.")
    new_tokens: int = Field(32, ge=1, description="Tokens to generate after the first.")
    repeats: int = Field(6, ge=1, description="Timed runs, after one warm-up run.")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(map(int, filter(None, self.batch_size.split(","))))
