"""The time that some work may take, and how much of it has passed."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Runs for so many seconds from now on, of which some may be used already; of math.inf seconds it is never over.

    >>> seconds = iter((100.0, 130.0, 190.0))
    >>> clock = Clock(300, used=30, now=lambda: next(seconds))
    >>> clock.used, clock.share
    (60.0, 0.4)
    """

    def __init__(self, seconds: float, *, used: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.now = seconds, now
        self._began = now() - used

    @property
    def used(self) -> float:
        """Seconds that have passed."""
        return self.now() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left; 0 when it is over."""
        return max(0.0, self.seconds - self.used)

    @property
    def share(self) -> float:
        """The share of the time that has passed, at most 1."""
        return min(1.0, self.used / self.seconds) if self.seconds else 1.0

    @property
    def over(self) -> bool:
        return self.used >= self.seconds

    def until(self, share: float) -> Clock:
        """Return a clock that is over when that share of this one's time has passed: the deadline of a stage."""
        return self._of(self.seconds * share)

    def reserving(self, seconds: float) -> Clock:
        """Return a clock that is over so many seconds earlier: what comes after needs them."""
        return self._of(max(0.0, self.seconds - seconds))

    def next(self, share: float) -> Clock:
        """Begin a clock now that is over when that share of the time that is left has passed: for a part of the work."""
        return Clock(self.left * share, now=self.now)

    def _of(self, seconds: float) -> Clock:
        clock = Clock(seconds, now=self.now)
        clock._began = self._began
        return clock
