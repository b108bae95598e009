"""Samples that are held out: what is fitted on the others chooses on them, or is judged on them."""

from __future__ import annotations

from shortstack.data.tokens import HELD_OUT as HELD_OUT
from shortstack.data.tokens import JUDGING as JUDGING
from shortstack.data.tokens import Tokens
from shortstack.errors import DataError


def check_enough(tokens: Tokens, fix: str, *, at_least: int = HELD_OUT) -> None:
    """Refuse samples of which none could be held out, or that are fewer than `at_least`."""
    for kind, _ in tokens.parts:
        if kind.samples < at_least:
            raise DataError(
                kind.source,
                expected=f"at least {at_least} samples, since one in {at_least} is held out",
                found=str(kind.samples),
                fix=fix,
            )


def split(tokens: Tokens, each: int = HELD_OUT) -> tuple[Tokens, Tokens]:
    """Samples to fit on, and every fourth of each kind, held out; each: in place of four."""
    import torch

    held_out = torch.cat([torch.arange(kind.samples) % each == each - 1 for kind, _ in tokens.parts])
    return tokens.rows(~held_out), tokens.rows(held_out)
