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


def perplexity(loss: float) -> float:
    """Compute exp(loss), in nats per predicted token (Kim et al. 2402.02834, eq. 1; Lu et al., 3.1)."""
    return math.inf if loss >= 700 else math.exp(loss)  # NaN stays NaN


def checked(value: float, where: str) -> float:
    """Return the value; refuse NaN."""
    if value != value:
        raise ShortstackError(f"{where} is NaN; check the weights for NaN, or compute in float32")
    return value
