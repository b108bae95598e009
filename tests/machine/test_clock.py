"""The clock that work with a time limit reads."""

import math

from shortstack.machine.clock import Clock


class Hands:
    """A clock's hands that a test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_counts_what_was_used_before() -> None:
    hands = Hands()
    clock = Clock(100, used=20, now=hands)
    hands.at += 30
    assert (clock.used, clock.left, clock.share, clock.over) == (50, 50, 0.5, False)
    hands.at += 70
    assert (clock.used, clock.left, clock.share, clock.over) == (120, 0, 1, True)


def test_deadlines_are_of_the_same_time() -> None:
    hands = Hands()
    clock = Clock(100, now=hands)
    hands.at += 20
    assert (clock.until(0.5).left, clock.reserving(10).left, clock.next(0.25).left) == (30, 70, 20)
    assert clock.reserving(10).until(0.5).left == 25
    part = clock.next(0.25)
    hands.at += 10
    assert (part.share, part.reserving(5).left, Clock(0.0, now=hands).share) == (0.5, 5, 1)
    hands.at += 20
    assert clock.until(0.5).over


def test_without_an_end() -> None:
    clock = Clock(math.inf)
    assert (clock.left, clock.share, clock.over) == (math.inf, 0, False)
