"""Samples that are held out: what is fitted or chosen on the others is judged on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shortstack.data.tokens import Tokens
from shortstack.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


HELD_OUT = 4  # one sample in so many


def check_enough(tokens: Tokens, fix: str, *, at_least: int = HELD_OUT) -> None:
    """Refuse samples of which none could be held out, or that are fewer than `at_least`.

    Raises:
        DataError: they are too few; `fix` says how to have more.
    """
    if len(tokens.ids) < at_least:
        raise DataError(
            tokens.source,
            expected=f"at least {at_least} samples, since one in {HELD_OUT} is held out",
            found=str(len(tokens.ids)),
            fix=fix,
        )


def split(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Samples [samples, length] to fit on, and every fourth, held out."""
    import torch

    held_out = torch.arange(len(ids)) % HELD_OUT == HELD_OUT - 1
    return ids[~held_out], ids[held_out]
