"""The clock that work with a time limit reads."""

import math

from shortstack.machine.clock import Clock


def test_deadlines_share_one_time() -> None:
    at = [1000.0]
    clock = Clock(120, used=20, now=lambda: at[0])
    at[0] += 20
    assert (clock.until(0.5).left, clock.reserving(20).left, clock.next(0.25).left) == (20, 60, 20)
    assert clock.reserving(20).until(0.5).left == 10
    part = clock.next(0.25)
    at[0] += 10
    assert (part.share, part.reserving(5).left, Clock(0.0).share) == (0.5, 5, 1)
    at[0] += 80
    assert (clock.used, clock.left, clock.share, clock.over, clock.until(0.9).over) == (130, 0, 1, True, True)


def test_clock_without_end() -> None:
    clock = Clock(math.inf)
    assert (clock.left, clock.share, clock.over) == (math.inf, 0, False)
