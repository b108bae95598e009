"""What fits into the minutes of a shrink on this machine: its speed is measured, and the steps say what they would take."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import yaml

from shortstack.errors import InputError, parameter
from shortstack.evaluation import EvaluationText
from shortstack.machine.files import digest, plain, save_json
from shortstack.study.beside import beside_seconds
from shortstack.study.costs import START_SECONDS, Estimate, estimate
from shortstack.study.grid import parse_study
from shortstack.study.minutes import LEAST, Amounts, Line, fitting
from shortstack.study.references import expanded, open_model
from shortstack.study.shrink_study import ShrinkStudy
from shortstack.study.sizes import ModelSize, TextSizes
from shortstack.study.step_cost import added

KINDS_OF = {  # the steps that look at so much
    "windows": ("score", "plan"),
    "repair": ("prune",),
    "samples": ("heal", "turns"),
    "judged": ("evaluate",),
}
TYPICAL = "25%"  # of the layers go, where only trials will show how much can
JUDGED_TOKENS = EvaluationText.length  # of a window that is measured on
REPORT_SECONDS = 3.0  # of the page and the card; 2 s on an AMD EPYC, 2026-11-27


@dataclass(frozen=True)
class Reckoned:
    """What fits, and what it takes, in seconds.

    planned: one step of each kind; trial: all steps of the cuts that are tried together; after: what follows the last step;
    all: everything.
    """

    amounts: Amounts
    planned: Mapping[str, float]
    trial: float
    after: float
    all: float


@dataclass(frozen=True)
class Reckoning:
    """What a shrink of a model takes, by the speed of this machine.

    drops: the cuts that are made together, as a study says them. begun: when it began, by time.monotonic(). trials: how many
    times as much is tried, one after the other; they share the minutes.
    """

    study: ShrinkStudy
    drops: Sequence[str]
    begun: float
    trials: int = 1

    def reckoned(self, wanted: Amounts) -> Reckoned:
        """What fits into the minutes; the same again where a run goes on.

        Raises:
            InputError: what is there of the data cannot be known before it is read.
        """
        study = self.study
        path = study.folder / "amounts.json"
        options = replace(study.options, keep=None)  # another share is planned alike, so that what was made is used
        asked = digest(
            [study.model, study.trial, *map(plain, (options, study.compute, wanted)), [*self.drops], self.trials]
        )
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if known.get("asked") == asked:
            seconds = (known[name] for name in ("trial", "after", "all"))
            return Reckoned(Amounts(**known["amounts"]), known["planned"], *seconds)
        reckoned, _ = self.measured(wanted)
        study.folder.mkdir(exist_ok=True)
        save_json(path, {"asked": asked, **plain(reckoned)})
        return reckoned

    def measured(self, wanted: Amounts) -> tuple[Reckoned, Estimate]:
        """What fits into the minutes, by the speed of this machine as it is now; and what its study would take.

        Raises:
            InputError: what is there of the data cannot be known before it is read.
        """
        study, options = self.study, self.study.options
        checkpoint = open_model(str(expanded(study.model)))
        size = ModelSize.measured(checkpoint, dtype=study.compute.dtype, device=study.compute.device)
        texts = TextSizes({})
        lines = self._lines(size, texts)
        trials = parse_study(self._asked(LEAST), where="shrink").trials
        kept = [size.layers - trial.amount(size.layers) for trial in trials]
        int8 = len(options.texts) * JUDGED_TOKENS * size.passed(size.layers, 1)  # of a window, measured once at the end
        lines["judged"] = Line(lines["judged"].fixed, lines["judged"].each + int8 / self.trials)
        least_after = beside_seconds(size, kept, 0.0) + REPORT_SECONDS * len(kept)
        begun = time.monotonic() - self.begun + START_SECONDS + (self._scoring(size, texts) if options.share else 0.0)
        fitted = fitting(wanted, (60 * options.minutes - begun - least_after) / self.trials, lines)
        after = least_after + int8 * fitted.judged
        found = self._estimated(fitted, size, texts)
        planned = {kind: (seconds or 0.0) / found.steps[kind] for kind, seconds in found.seconds.items()}
        trial = sum(seconds or 0.0 for seconds in found.seconds.values())
        return Reckoned(fitted, planned, trial, after, begun + after + self.trials * trial), found

    def _lines(self, size: ModelSize, texts: TextSizes) -> dict[str, Line]:
        """The seconds of choosing, repairing, healing and judging, from what runs of different amounts would take."""
        few, many = LEAST, LEAST.doubled()
        none, one, two = (
            [self._estimated(replace(amounts, finalists=finalists), size, texts) for amounts in (few, many)]
            for finalists in (0, 1, 2)
        )
        lines = {name: _line(name, few, many, none) for name in KINDS_OF}
        more = _line("windows", few, many, two).less(_line("windows", few, many, one))
        return {**lines, "finalists": more}

    def _scoring(self, size: ModelSize, texts: TextSizes) -> float:
        """Seconds of the cost of each layer alone, from which the first cut is guessed that might keep a share."""
        asked = self.study.asked(LEAST, self.drops)
        plain_cuts = [{**trial, "metric": "ppl", "repair": False, "heal": "none"} for trial in asked["trials"]]
        study = parse_study(str(yaml.safe_dump({**asked, "trials": plain_cuts})), where="shrink")
        return estimate(study, {self.study.model: size}, texts).seconds.get("score") or 0.0

    def _estimated(self, amounts: Amounts, size: ModelSize, texts: TextSizes) -> Estimate:
        return estimate(parse_study(self._asked(amounts), where="shrink"), {self.study.model: size}, texts)

    def _asked(self, amounts: Amounts) -> str:
        return str(yaml.safe_dump(self.study.asked(amounts, self.drops)))


def _line(name: str, few: Amounts, many: Amounts, estimates: Sequence[Estimate]) -> Line:
    """What a number of windows or samples takes, from what runs with few and with many of them would take.

    Raises:
        InputError: nobody can tell.
    """
    less, more = getattr(few, name), getattr(many, name)
    low, high = (added(each.seconds.get(kind, 0.0) for kind in KINDS_OF[name]) for each in estimates)
    if low is None or high is None:
        what, fix = ("tasks", parameter("data_dir", "FOLDER")) if name == "judged" else ("data", "download it first")
        raise InputError(
            parameter(what),
            expected=f"{what} on this disk, to plan the minutes",
            found=f"{what} whose length nobody knows before they are read",
            fix=fix if what == "data" else f"name their folder: {fix}",
        )
    each = (high - low) / (more - less)
    return Line(low - each * less, each)
