"""Healing by a clock: how many samples and steps there is time for, planned anew as the machine becomes faster or slower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.data import Example, Text
from shortstack.data.examples import shared_out, shares
from shortstack.data.sources import OWN, is_own
from shortstack.data.text import Source
from shortstack.data.tokens import bos_ids, own_windows
from shortstack.healing.schedule import Course
from shortstack.healing.task import TrainingData
from shortstack.machine.clock import Clock
from shortstack.machine.files import read_json
from shortstack.machine.numbers import is_share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WALK_SHARE = 0.25  # of the time, at most, takes one pass of all samples without gradients: what is frozen, a teacher
WRITING_SHARE = 0.25  # of the time, at most, writes text
FIRST_LOOK = 3  # steps after which the plan is looked at first; the first of them warms up and counts for nothing
FIRST_PLAN = 30  # steps, at least, before that look: a guess that is too small would waste the rate's way
LOOKS = 20  # as often, at most, is the plan looked at
OFF = 0.05  # of the steps that are left: a plan that is wrong by more is made anew
SLACK = 0.97  # of the time is planned: steps differ in length
TRAINING_PASSES = 3  # a step takes as long as so many passes without gradients
HELD_OUT_SHARE = 0.1  # of the time, at most, goes into held-out losses
EVALUATIONS = 10  # held-out losses, where they take less
TIME_OVER = "the time was up"
CLOCK = "clock.json"  # in the folder of a state


def kept_pacing(state: Path | None) -> dict[str, Any]:
    """Read the output of Pacing.kept() from a training state; if there is none, no seconds are used."""
    path = state and state / CLOCK
    return read_json(path) if path and path.exists() else {"used": 0.0}


@dataclass
class Pacing:
    """Follows a training by its clock, and changes its course.

    clock: when it is over training must have ended, and its last held-out loss. step_tokens: of an average step. agreed: the
    seconds that all processes go by. course: the plan; None before there is one. eval_share: of the course, between two
    held-out losses.
    """

    clock: Clock
    step_tokens: float
    agreed: Callable[[float], float] = float
    course: Course | None = None
    eval_share: float = 1 / EVALUATIONS
    _began: float = 0.0  # this run's first step
    _evaluating: float = 0.0  # seconds of all held-out losses
    _evaluation: float = 0.0  # of the last one
    _token_seconds: float = math.inf
    _mark: tuple[float, int] = (0.0, 0)  # seconds of training and tokens at the last look
    _steps: int = 0  # of this run

    def going_on(self, kept: Mapping[str, Any]) -> Pacing:
        """Take over the course of the run that was kept, if there was one."""
        if course := kept.get("course"):
            self.course = Course(course["steps"], tuple((step, steps) for step, steps in course["replanned"]))
            self.eval_share, self._evaluation = kept["eval_share"], kept["evaluation"]
        return self

    def kept(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {
            "used": self.clock.used,
            "course": asdict(self.course) if self.course else None,
            "eval_share": self.eval_share,
            "evaluation": self._evaluation,
        }

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time a held-out loss, which is no part of a step."""
        began = self._used
        yield
        self._evaluation = self._used - began
        self._evaluating += self._evaluation

    def begin(self, held_out_tokens: int) -> bool:
        """Make the first plan, by how long the held-out loss before training took; a run that goes on has one.

        False where there is no time for a single step.
        """
        self._began = used = self._used
        if self.course is None:
            affordable = HELD_OUT_SHARE * (self.clock.seconds - used) / max(self._evaluation, 1e-9)
            self.eval_share = 1 / max(1, min(EVALUATIONS, int(affordable)))
            self._token_seconds = TRAINING_PASSES * self._evaluation / max(1, held_out_tokens)
            fitting = self._fitting(used, share=0.0)
            self.course = Course(max(FIRST_PLAN, fitting))
            return fitting > 0
        return True

    def stepped(self, step: int, tokens: int) -> bool:
        """Change the course after a step, if it leads elsewhere; return False where it ends here.

        tokens: that passed the model since begin().
        """
        used = self._used
        self._steps += 1
        trained = used - self._evaluating
        due = trained - self._mark[0] >= (self.clock.seconds - self._began) / LOOKS
        if self._steps == 1:
            self._mark = trained, tokens
        elif self._steps == FIRST_LOOK or (self._steps > FIRST_LOOK and due):
            self._token_seconds = (trained - self._mark[0]) / max(1, tokens - self._mark[1])
            self._mark = trained, tokens
            self._replan(step, used)
        if step < self._planned.steps and not self._room(used):
            self.course = self._planned.changed(step, step)
        return step < self._planned.steps

    @property
    def over(self) -> str | None:
        """Why the course ends before its plan did, if so."""
        last = self._planned.replanned[-1][0] if self._planned.replanned else 0
        return TIME_OVER if last == self._planned.steps else None

    def _replan(self, step: int, used: float) -> None:
        left, fitting = self._planned.steps - step, self._fitting(used, self._planned.share(step))
        if left > 0 and fitting > 0 and abs(fitting - left) > OFF * left:
            self.course = self._planned.changed(step, step + fitting)

    def _fitting(self, used: float, share: float) -> int:
        """Count the steps for which there is time, beside the held-out losses to come after a share of the course."""
        evaluations = math.ceil((1 - share) / self.eval_share - 1e-9)
        planned = self._began + SLACK * (self.clock.seconds - self._began)
        left = planned - used - evaluations * self._evaluation
        return math.floor(max(0.0, left) / max(self._step_seconds, 1e-9))

    def _room(self, used: float) -> bool:
        measured = self._steps >= FIRST_LOOK
        step = self._step_seconds if measured else (used - self._began) / self._steps
        return self.clock.seconds - used >= step + self._evaluation

    @property
    def _step_seconds(self) -> float:
        return self._token_seconds * self.step_tokens

    @property
    def _used(self) -> float:
        return self.agreed(self.clock.used)

    @property
    def _planned(self) -> Course:
        assert self.course  # noqa: S101  begin() made it
        return self.course


def affordable_samples(
    data: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    clock: Clock,
    *,
    speed: float,
    least: int,
    write: Callable[[Text, int, Clock], Text] | None,
) -> tuple[Any, int, int | None]:
    """Return the sources, how many samples pass the model in a part of the time, and all that there are or were asked for.

    Of a source that holds more than passes in that time no more is read: then nobody knows how many there are. speed: in
    tokens a second. least: so many are always taken. write: has the teacher write what a source of its own needs, as far as
    it comes in another part of the time; where that is little, the other sources count for more.
    """
    asked, enough = data.max_samples, max(WALK_SHARE * clock.left * speed, least * data.max_length)
    most = math.inf if asked is not None and is_share(asked) else enough  # of a share all must be counted
    read, wanted, ended = shared_out(data.text, tokenizer, 0, tokens=most)
    samples_of = {name: [example for part in parts for example in part] for name, parts in read.items()}
    sources, sizes = data.text.sources, {name: len(examples) for name, examples in samples_of.items()}
    whole, least = sum(wanted.values()), max(least, len(sources))
    there = whole if ended else None
    tokens = sum(amount * _length(samples_of.get(name, ()), data.max_length) for name, amount in wanted.items())
    samples = min(whole, max(least, math.floor(whole * WALK_SHARE * clock.left * speed / tokens)))
    if OWN not in wanted or not write:
        return data.data, samples, there
    amount = shares(sources, sizes, samples)[OWN]
    written = write(data.text, amount, clock.next(WRITING_SHARE))
    (file,) = (source.name for source in written.sources if is_own(source.name))
    windows = len(own_windows(file, data.max_length - len(bos_ids(tokenizer)), amount))
    if windows == amount:
        return data.data, samples, there
    if len(sources) == 1:
        return data.data, max(least, windows), there
    return _with_fewer_own(sources, sizes, samples, windows), samples, there


def _with_fewer_own(
    sources: Sequence[Source], sizes: Mapping[str, int], samples: int, windows: int
) -> dict[str, float]:
    """Return the sources with such a weight of `self` that at most so many of the samples come from it, if more than one."""
    others = sum(each.weight for each in sources if each.name != OWN)
    for own in range(max(1, windows), 0, -1):
        weight = float(f"{own * others / (samples - own):.3g}")
        lighter = [replace(each, weight=weight) if each.name == OWN else each for each in sources]
        if shares(lighter, sizes, samples)[OWN] <= windows:
            break
    return {each.name: each.weight for each in lighter}


def _length(examples: Sequence[Example], most: int) -> float:
    """Count the tokens of an average sample; the most where samples are written as they are read."""
    return sum(len(example.ids) for example in examples) / len(examples) if examples else most
