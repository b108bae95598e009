"""Numbers that must be right: sums in float64, values that are numbers, and the perplexity of a loss."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeGuard

from shortstack.errors import ShortstackError

if TYPE_CHECKING:
    from torch import Tensor


def in_float64(values: Tensor) -> Tensor:
    """Convert the values to float64; on the CPU where the device (MPS) has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


ALMOST = 1 - 1e-12  # so that 7 % of 100 are 7, where 0.07 * 100 is a little more


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number of any kind; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_share(amount: object) -> bool:
    """Return whether an amount is a share and not a count."""
    return isinstance(amount, Real) and not isinstance(amount, Integral)


def part_of(amount: float | None, whole: int) -> int:
    """Return how many of `whole` an amount is: a float is a share, rounded up; None: all.

    >>> part_of(0.07, 100), part_of(0.1, 12), part_of(5, 3), part_of(5, 8), part_of(None, 8)
    (7, 2, 3, 5, 8)
    """
    if amount is None:
        return whole
    return math.ceil(whole * float(amount) * ALMOST) if is_share(amount) else min(int(amount), whole)


def share_stderr(right: int, questions: int) -> float:
    """Compute the standard error of a share p of n: sqrt(p (1 - p) / (n - 1)); NaN of a single question.

    Of none or all right that would be 0, as if more questions could say nothing else. There it is the standard deviation
    of Jeffreys' posterior, Beta(right + 1/2, wrong + 1/2).

    >>> round(share_stderr(10, 20), 4), round(share_stderr(20, 20), 4), round(share_stderr(0, 20), 4)
    (0.1147, 0.0325, 0.0325)
    """
    if questions < 2:
        return math.nan
    if right in (0, questions):
        a, b = right + 0.5, questions - right + 0.5
        return math.sqrt(a * b / (a + b + 1)) / (a + b)
    share = right / questions
    return math.sqrt(share * (1 - share) / (questions - 1))


def perplexity(loss: float) -> float:
    """Compute exp(loss), in nats per predicted token (Kim et al. 2402.02834, eq. 1; Lu et al., 3.1)."""
    return math.inf if loss >= 700 else math.exp(loss)  # NaN stays NaN


def checked(value: float, where: str) -> float:
    """Return the value; refuse NaN."""
    if value != value:
        raise ShortstackError(f"{where} is NaN; check the weights for NaN, or compute in float32")
    return value
