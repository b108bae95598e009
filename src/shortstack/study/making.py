"""The trials of a shrink: one where it is said how much goes, or a few that find the largest cut that keeps enough."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from shortstack.data import CalibrationText
from shortstack.errors import ShortstackError, ShortstackWarning, parameter
from shortstack.machine.files import digest, plain, save_json
from shortstack.machine.formats import duration
from shortstack.machine.progress import Progress
from shortstack.runs.records import TrialRecord
from shortstack.study.keeping import TRIALS, Share, first_amount, kept, largest, least, next_amount
from shortstack.study.minutes import LEAST, Amounts
from shortstack.study.references import expanded, open_model
from shortstack.study.shrink_minutes import TYPICAL, Reckoned, Reckoning
from shortstack.study.shrink_study import ShrinkStudy
from shortstack.study.whole_progress import WholeProgress
from shortstack.study.workers import Launch

LATE = 1.1  # of the minutes: what more is planned is said before it begins


@dataclass(frozen=True)
class Tried:
    """A cut that was tried: how many layers went, and the measure of which it keeps least."""

    layers: int
    measure: str
    share: Share

    def __str__(self) -> str:
        layers = f"{self.layers} layer{'s' * (self.layers > 1)}"
        return f"without {layers} {self.share} of the {self.measure}"


@dataclass(frozen=True)
class Made:
    """The trial that is taken, what it was planned by, and the cuts that were tried where a share was asked for."""

    trial: TrialRecord
    reckoned: Reckoned
    tried: tuple[Tried, ...] = ()


def evaluations(trial: TrialRecord) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What was measured of the unpruned model, and of the last that a trial made."""
    last = "evaluate_healed" if "evaluate_healed" in trial.steps else "evaluate_pruned"
    return trial.steps["evaluate_base"].result, trial.steps[last].result


@dataclass(frozen=True)
class Making:
    """Runs the trials of a shrink."""

    study: ShrinkStudy
    launcher: Callable[[], AbstractContextManager[Launch]]
    whole: WholeProgress

    def named(self, drops: Sequence[str], wanted: Amounts) -> list[Made]:
        """A trial of each cut that was named, from one study."""
        reckoned = self._reckoned(Reckoning(self.study, drops, self.whole.begun), wanted)
        self._run(reckoned, drops, more=0)
        return [Made(trial, reckoned) for trial in self.study.trials()]

    def keeping(self, share: float, wanted: Amounts) -> Made:
        """The largest of at most TRIALS cuts that keeps a share of every measure.

        Raises:
            ShortstackError: none of them does.
        """
        most = open_model(str(expanded(self.study.model))).anatomy.layers - 1
        reckoned = self._reckoned(Reckoning(self.study, [TYPICAL], self.whole.begun, TRIALS), wanted)
        amounts, tried = [self._first(share)], dict[int, Tried]()
        while True:
            self._run(reckoned, [str(amount) for amount in amounts], more=TRIALS - len(amounts))
            for amount, trial in zip(amounts, self.study.trials(), strict=True):
                tried[amount] = Tried(amount, *least(kept(*evaluations(trial))))
            following = next_amount({each.layers: each.share.value for each in tried.values()}, share, most=most)
            if following is None or len(amounts) == TRIALS:
                break
            amounts.append(following)
        best = largest({each.layers: each.share.value for each in tried.values()}, share)
        if best is None:
            raise self._nothing_keeps(list(tried.values()))
        return Made(self.study.trials()[amounts.index(best)], reckoned, tuple(tried.values()))

    def _reckoned(self, reckoning: Reckoning, wanted: Amounts) -> Reckoned:
        self.whole.before("measuring the speed of this machine", 0, 1)
        reckoned, minutes = reckoning.reckoned(wanted), self.study.options.minutes
        if reckoned.all > LATE * 60 * minutes and not self.study.begun:  # what is done takes no time again
            took = f"{duration(reckoned.all)} is needed for the least to choose, repair, heal and measure on"
            warnings.warn(f"{took}, where {duration(60 * minutes)} was given", ShortstackWarning, stacklevel=4)
        self.whole.expect(reckoned.all, reckoned.after)
        self.study.note(reckoned.planned, after=self.whole.left)
        return reckoned

    def _run(self, reckoned: Reckoned, drops: Sequence[str], *, more: int) -> None:
        """Run what is not done of the trials that are known; more: those that may follow."""
        study = self.study
        study.note(reckoned.planned, after=more * reckoned.trial + reckoned.after)
        study.run(study.asked(reckoned.amounts, drops), self.launcher, self.whole.study(study.folder))

    def _first(self, share: float) -> int:
        """How many layers to try first, from the cost of each; kept beside the study."""
        study = self.study
        path = study.folder / "costs.json"
        asked = digest([study.model, study.options.text, study.options.length, plain(study.compute)])
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if known.get("asked") != asked:
            known = {"asked": asked, "costs": self._costs(self.whole.before)}
            save_json(path, known)
        return first_amount(known["costs"], share)

    def _costs(self, progress: Progress) -> list[float]:
        """Nats per token that each layer alone costs on the calibration text."""
        from shortstack.decoder import calibration_tokens
        from shortstack.scoring import score

        study, checkpoint = self.study, open_model(str(expanded(self.study.model)))
        text = CalibrationText(study.options.text, LEAST.windows, study.options.length)
        tokens = calibration_tokens(checkpoint, text, compute=study.compute, progress=progress)
        scores = score(checkpoint, tokens, metrics=["ppl"], compute=study.compute, progress=progress)
        base = 0.0 if scores.kinds else scores.base_loss or 0.0  # of several kinds it is the ratio already
        return [math.log(value) - base for value in scores.scores["ppl"]]

    def _nothing_keeps(self, tried: list[Tried]) -> ShortstackError:
        fewest = min(tried, key=lambda each: each.layers)
        return ShortstackError(
            parameter("keep", self.study.options.keep),
            expected="a cut that keeps so much by every measure",
            found=str(fewest),
            fix=f"ask for less, or allow more {parameter('minutes')}; what was made stays in {self.study.folder}",
        )
