"""Healing within a time limit: how many samples, whether it can finish, and when training stops."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from shortstack.errors import InputError
from shortstack.machine.clock import Clock

PREPARED = 0.25  # share of the time for outputs of frozen layers and of the teacher
WRITTEN = 0.25  # share of the time for text that the base model writes
HELD_OUT = 0.1  # share of the samples held out, at most
EVALUATIONS = 4  # held-out losses: before training, at each third of the time, at the end
STEP = 4.0  # forward passes that take as long as training on the same samples
GENERATED = 4.0  # forward passes that take as long as generating as many tokens
MARGIN = 1.5  # of an estimate that decides whether a run begins
RECENT = 8  # steps, the longest of which the next is assumed to take
FIXED_SECONDS, BYTES_PER_SECOND = 3.0, 1e8  # of loading, and of merging and writing


def io_seconds(nbytes: int) -> float:
    """Estimate the seconds of loading or writing weights."""
    return FIXED_SECONDS + nbytes / BYTES_PER_SECOND


@dataclass(frozen=True)
class Budget:
    """The cost of a healing.

    speed: forward tokens per second. passes: forward passes of each sample before training. batch, length: samples of a
    step and tokens of a sample. written: tokens that the base model writes at least. nbytes: of the weights.
    """

    speed: float
    passes: float
    batch: int
    length: int
    written: int
    nbytes: int

    def tokens(self, seconds: float) -> float:
        """Return the tokens of all samples that can be prepared in a run of so many seconds."""
        return max(PREPARED * seconds * self.speed / max(1.0, self.passes), self.least_samples * self.length)

    @property
    def least_samples(self) -> int:
        return max(self.batch, 2)

    @property
    def least_seconds(self) -> float:
        """Estimate the seconds of one step with its held-out losses, loading and writing."""
        passes = self.least_samples * (self.passes + STEP) + EVALUATIONS
        tokens = passes * self.length + GENERATED * self.written
        return MARGIN * (tokens / self.speed + 2 * io_seconds(self.nbytes))

    def step_seconds(self, tokens: float) -> float:
        """Estimate the seconds of a training step on so many tokens."""
        return STEP * tokens / self.speed

    def check(self, seconds: float, used: float) -> None:
        """Refuse a run that cannot take a step in the time left."""
        if seconds - used < self.least_seconds:
            enough = math.ceil((used + self.least_seconds) / 6) / 10
            message = f"{seconds / 60:.3g} minutes are too few to take a step; give at least {enough:g}"
            raise InputError(message, option="minutes")


class Deadline:
    """The time limit of training: the share that is gone, and whether another step fits.

    clock: over when the last held-out loss must have ended. step: estimate for the first step. began: seconds used when
    training began. All processes are given the same times, so that they decide alike.
    """

    def __init__(self, clock: Clock, *, step: float, began: float | None = None) -> None:
        self.clock, self.used = clock, clock.used
        self.began = self.used if began is None else began
        self.evaluation = 0.0
        self._steps, self._estimated = deque([step], RECENT), True

    def look(self, used: float, *, step: float | None = None, evaluation: float | None = None) -> None:
        """Note the seconds used, and how long a step or a held-out loss has just taken."""
        self.used = used
        if evaluation is not None:
            self.evaluation = evaluation
        if step is not None:
            if self._estimated:
                self._steps.clear()
                self._estimated = False
            self._steps.append(step)

    @property
    def share(self) -> float:
        """The share of the training time that is gone."""
        return self._share(self.used)

    @property
    def middle(self) -> float:
        """The share in the middle of the next step."""
        return self._share(self.used + self._steps[-1] / 2)

    @property
    def left(self) -> float:
        return self.clock.seconds - self.used

    def fits(self, evaluations: int = 1) -> bool:
        """Return True if a step and so many held-out losses end in time."""
        return self.left >= max(self._steps) + evaluations * self.evaluation

    def _share(self, used: float) -> float:
        whole = self.clock.seconds - self.began
        return min(1.0, max(0.0, (used - self.began) / whole)) if whole > 0 else 1.0
