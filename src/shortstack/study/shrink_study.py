"""The study of one trial behind shrink(): how much of everything it looks at, what it runs, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import yaml

from shortstack.errors import InputError, ShortstackError, parameter
from shortstack.machine.device import Compute
from shortstack.machine.files import digest, plain, save_json, whole
from shortstack.machine.progress import Progress
from shortstack.runs import records
from shortstack.runs.records import StepRecord, TrialRecord
from shortstack.runs.store import Folder
from shortstack.study.costs import estimate
from shortstack.study.grid import parse_study
from shortstack.study.minutes import LEAST, Amounts, Line, fitting
from shortstack.study.progress import last_line
from shortstack.study.references import expanded, open_model
from shortstack.study.runner import run_study
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.sizes import ModelSize
from shortstack.study.steps import added
from shortstack.study.workers import Launch

KINDS_OF = {  # the steps that look at so much
    "windows": ("score", "plan"),
    "repair": ("prune",),
    "samples": ("heal", "turns"),
    "judged": ("evaluate",),
}
MAKING = ("score", "plan", "prune", "heal")  # the roles of the steps that make a checkpoint


def _line(name: str, few: Amounts, many: Amounts, seconds: Sequence[Mapping[str, float | None]]) -> Line:
    """What a number of windows or samples takes, from the seconds by kind of step with few and with many of them.

    Raises:
        InputError: nobody can tell.
    """
    (less, more), (low, high) = (
        (getattr(few, name), getattr(many, name)),
        (added(each.get(kind, 0.0) for kind in KINDS_OF[name]) for each in seconds),
    )
    if low is None or high is None:
        where, found = parameter("data"), "data whose length nobody knows before it is read"
        raise InputError(where, expected="data on this disk, to plan the minutes", found=found, fix="download it first")
    each = (high - low) / (more - less)
    return Line(low - each * less, each)


@dataclass(frozen=True)
class ShrinkStudy:
    """The study behind shrink(), of one trial, in a folder of its own."""

    model: str
    folder: Path
    options: ShrinkOptions
    compute: Compute
    trial: Mapping[str, Any]

    def amounts(self, wanted: Amounts, progress: Progress) -> Amounts:
        """What fits into the minutes, by the speed of this machine; the same again where a run goes on.

        Raises:
            InputError: what is there of the data cannot be known before it is read.
        """
        path = self.folder / "amounts.json"
        asked = digest([self.model, self.trial, plain(self.options), plain(self.compute), plain(wanted)])
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if known.get("asked") == asked:
            return Amounts(**known["amounts"])
        progress("measuring the speed", 0, 1)
        amounts = fitting(wanted, 60 * self.options.minutes, self._lines())
        self.folder.mkdir(exist_ok=True)
        save_json(path, {"asked": asked, "amounts": plain(amounts)})
        return amounts

    def _lines(self) -> dict[str, Line]:
        """The seconds of choosing, repairing, healing and judging, from what two runs of different amounts would take."""
        few, many = LEAST, Amounts(*(2 * (amount or 0) for amount in astuple(LEAST)))
        checkpoint = open_model(str(expanded(self.model)))
        size = ModelSize.measured(checkpoint, dtype=self.compute.dtype, device=self.compute.device)
        seconds = []
        for amounts in (few, many):
            study = parse_study(yaml.safe_dump(self._asked(amounts)), where="shrink")
            seconds.append(estimate(study, {self.model: size}).seconds)
        return {name: _line(name, few, many, seconds) for name in KINDS_OF}

    def _asked(self, amounts: Amounts) -> dict[str, Any]:
        """The study, as its file says it."""
        options, trial = self.options, {name: value for name, value in self.trial.items() if value is not None}
        if trial["repair"]:
            trial["repair"] = {"text": options.text, "length": options.length, "samples": amounts.repair}
        if trial["heal"] != "none":
            trial["heal"] = {**trial["heal"], "max_samples": amounts.samples}
        return {
            "title": f"shrink {self.model}",
            "models": [self.model],
            "calibration": {"text": options.text, "samples": amounts.windows, "length": options.length},
            "seeds": [self.compute.seed],
            "trials": [trial],
            "evaluation": {
                "perplexity": options.texts,
                "samples": amounts.judged,
                "probe_items": options.probe_items,
            },
            "compute": {"device": self.compute.device, "dtype": self.compute.dtype},
        }

    def run(
        self,
        amounts: Amounts,
        launcher: Callable[[], AbstractContextManager[Launch]],
        progress: Progress,
    ) -> None:
        """Run what is not done yet of the trial."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "asked.yaml"
        with whole(path) as partial:
            partial.write_text(yaml.safe_dump(self._asked(amounts), sort_keys=False), encoding="utf-8")
        run_study(path, self.folder, launcher=launcher, keep="all", replaced=True, progress=progress)

    def last(self) -> TrialRecord:
        """The last trial.

        Raises:
            ShortstackError: a step of it failed.
        """
        trial = records.read(self.folder).trials[-1]
        failed = next((step for step in trial.steps.values() if step.state == "failed"), None)
        if failed:
            raise ShortstackError(
                f"shrink: {failed.kind}",
                expected="every step to end",
                found=last_line(failed.error),
                fix=f"read {Folder(self.folder).log(failed.key)}; called again, it goes on",
            )
        return trial

    def artefact(self, step: StepRecord) -> Path:
        """What a step wrote."""
        return Folder(self.folder).artefact(step.key)

    def made(self, trial: TrialRecord) -> Path:
        """The trial's last checkpoint."""
        return self.artefact(trial.steps.get("heal") or trial.steps["prune"])

    def commands(self, trial: TrialRecord) -> list[str]:
        """The commands that make a trial's checkpoint, one after the other, each on what the one before names."""
        names = {"score": ".", "prune": "pruned", "heal": "healed"}
        places = {str(self.artefact(step).absolute()): names.get(role, role) for role, step in trial.steps.items()}
        commands = [trial.steps[role].command or "" for role in MAKING if role in trial.steps]
        for place, name in places.items():
            commands = [command.replace(place, name) for command in commands]
        return [" ".join(command.splitlines()) for command in commands]
