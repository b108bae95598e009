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
    one step at most, libraries included; disk_bytes: of weights until the end. left_out: what there would be no time for.
    """

    seconds: Mapping[str, float]
    after: float
    all_seconds: float
    minutes: float
    memory_bytes: int | None
    disk_bytes: int
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
    out, options, begun = Path(out), options or ShrinkOptions(), time.monotonic()
    libraries = psutil.Process().memory_info().rss
    trial = recipe_trial(model, options)
    study = ShrinkStudy(model, out.with_name(f"{out.name}.study"), options, compute, trial)
    trials, drop = (TRIALS, TYPICAL) if options.share else (1, str(trial["drop"]))
    with in_words_of_shrink():
        wanted = check_shrink(model, {str(trial["drop"]): out}, options, trial, compute)
        reckoned, estimate = Reckoning(study, [drop], begun, trials).measured(wanted)
    return Foreseen(
        {kind: trials * (seconds or 0.0) for kind, seconds in estimate.seconds.items()},
        reckoned.after,
        reckoned.all,
        options.minutes,
        None if estimate.memory_bytes is None else libraries + estimate.memory_bytes,
        CHECKPOINTS * open_model(str(expanded(model))).weight_bytes * trials,
        reckoned.amounts.left_out(wanted),
        trials,
    )
