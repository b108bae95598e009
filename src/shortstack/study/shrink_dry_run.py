"""What shrink() would do and take, without doing it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import plain
from shortstack.study.keeping import TRIALS
from shortstack.study.references import expanded, open_model
from shortstack.study.shrink_checks import CHECKPOINTS, check_shrink, in_words_of_shrink
from shortstack.study.shrink_minutes import TYPICAL, Reckoning
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.shrink_study import ShrinkStudy
from shortstack.study.shrink_trial import recipe_trial


@dataclass(frozen=True)
class Foreseen:
    """What a shrink would take.

    seconds: of the steps of each kind, of all trials; all_seconds: of everything; minutes: what was given. memory_bytes: of
    one step at most, libraries included; disk_bytes: of weights until the end; read_bytes: of weights, by all steps.
    left_out: what there would be no time for.
    """

    seconds: Mapping[str, float]
    after: float
    all_seconds: float
    minutes: float
    memory_bytes: int | None
    disk_bytes: int
    read_bytes: int | None
    left_out: Sequence[str]
    trials: int

    def to_dict(self) -> dict[str, Any]:
        return dict(plain(self))


def foresee_shrink(
    model: str, out: str | Path, options: ShrinkOptions | None = None, *, compute: Compute = AUTO
) -> Foreseen:
    """Check all that shrink() checks, measure this machine's speed, and say what fits into the minutes; writes nothing.

    Raises:
        ShortstackError: as shrink(), before it begins.
    """
    options = options or ShrinkOptions()
    return foresee_each(model, {str(recipe_trial(model, options)["drop"]): Path(out)}, options, compute=compute)


def foresee_each(model: str, outs: Mapping[str, Path], options: ShrinkOptions, *, compute: Compute = AUTO) -> Foreseen:
    """The same of shrink_each(); outs: the new directory of each cut, by how much goes."""
    begun, libraries = time.monotonic(), psutil.Process().memory_info().rss
    trial, first = recipe_trial(model, options), next(iter(outs.values()))
    study = ShrinkStudy(model, first.with_name(f"{first.name}.study"), options, compute, trial)
    trials, drops = (TRIALS, [TYPICAL]) if options.share else (1, [*outs])
    with in_words_of_shrink():
        wanted = check_shrink(model, outs, options, trial, compute)
        reckoned, estimate = Reckoning(study, drops, begun, trials).measured(wanted)
    return Foreseen(
        {kind: trials * (seconds or 0.0) for kind, seconds in estimate.seconds.items()},
        reckoned.after,
        reckoned.all,
        options.minutes,
        None if estimate.memory_bytes is None else libraries + estimate.memory_bytes,
        CHECKPOINTS * open_model(str(expanded(model))).weight_bytes * trials * len(outs),
        None if estimate.read_bytes is None else trials * estimate.read_bytes,
        reckoned.amounts.left_out(wanted),
        trials,
    )
