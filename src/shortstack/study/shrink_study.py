"""The study behind shrink(), in a folder of its own: what it asks for, and what its trials gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from shortstack.errors import ShortstackError
from shortstack.machine.device import Compute
from shortstack.machine.files import whole
from shortstack.machine.progress import Progress
from shortstack.planning.plans import BLOCKS
from shortstack.runs import Store, records
from shortstack.runs.folder import Folder
from shortstack.runs.records import StepRecord, TailsRecord, TrialRecord
from shortstack.study.minutes import Amounts
from shortstack.study.progress import last_line
from shortstack.study.runner import run_study
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.workers import Launch


@dataclass(frozen=True)
class ShrinkStudy:
    """The study behind shrink(). trial: the recipe; its trials differ in how many layers go, as `drops` say."""

    model: str
    folder: Path
    options: ShrinkOptions
    compute: Compute
    trial: Mapping[str, Any]

    def asked(self, amounts: Amounts, drops: Sequence[str]) -> dict[str, Any]:
        """The study, as its file says it."""
        options, trial = self.options, {name: value for name, value in self.trial.items() if value is not None}
        if trial["metric"] == BLOCKS:
            trial["metric"] = f"{BLOCKS} {amounts.finalists}"
        if trial["repair"]:
            trial["repair"] = {"text": options.text, "length": options.length, "samples": amounts.repair}
        if trial["heal"] != "none":
            trial["heal"] = {**trial["heal"], "max_samples": amounts.samples}
        return {
            "title": f"shrink {self.model}",
            "models": [self.model],
            "calibration": {"text": options.text, "samples": amounts.windows, "length": options.length},
            "seeds": [self.compute.seed],
            "trials": [{**trial, "drop": drop} for drop in drops],
            "evaluation": {
                "perplexity": options.texts,
                "samples": None if amounts.all_judged else amounts.judged,
                "probe_items": options.probe_items,
                "collapse": True,  # of the unpruned model, too: the verdict judges by what that writes
                "pruned": False,  # what heals is measured once it has
                "seed": self.compute.seed,
                **options.asked_tasks,
            },
            "compute": {"device": self.compute.device, "dtype": self.compute.dtype},
        }

    def run(
        self,
        asked: Mapping[str, Any],
        launcher: Callable[[], AbstractContextManager[Launch]],
        progress: Progress,
    ) -> None:
        """Run what is not done yet of the trials.

        Raises:
            ShortstackError: a step failed; what it raised, where that says what to do.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "asked.yaml"
        with whole(path) as partial:
            partial.write_text(yaml.safe_dump(dict(asked), sort_keys=False), encoding="utf-8")
        outcome = run_study(path, self.folder, launcher=launcher, keep="all", replaced=True, progress=progress)
        if outcome.raised:
            raise outcome.raised[0]
        if outcome.failures:
            failed = outcome.failures[0]
            raise ShortstackError(
                f"shrink: {failed['kind']}",
                expected="every step to end",
                found=last_line(failed["error"]),
                fix=f"read {failed['log']}, mend what it says and call it again: it goes on from there",
            )

    @property
    def begun(self) -> bool:
        """Whether some of its steps have run."""
        return Folder(self.folder).database.exists()

    def note(self, planned: Mapping[str, float], *, after: float) -> None:
        """Keep for who watches the seconds of one step of each kind, and those behind the steps that are known."""
        self.folder.mkdir(exist_ok=True)
        folder = Folder(self.folder)
        with folder.held(), Store.open(folder) as store:
            store.note(title=f"shrink {self.model}", planned=planned, after=after)

    def conclude(
        self, trial: TrialRecord, verdict: str, answers: Sequence[Mapping[str, str]], tails: TailsRecord
    ) -> None:
        """Keep which trial the report is about, what it says first, and the curve that it draws beside this cut."""
        with Store.open(Folder(self.folder)) as store:
            store.note(subject=trial.id, conclusion=verdict, answers=list(answers), tails=asdict(tails))

    def trials(self) -> list[TrialRecord]:
        """The trials that were run, in order."""
        return list(records.read(self.folder).trials)

    def artefact(self, step: StepRecord) -> Path:
        """What a step wrote."""
        return Folder(self.folder).artefact(step.key)

    def made(self, trial: TrialRecord) -> Path:
        """The trial's last checkpoint."""
        return self.artefact(trial.steps.get("heal") or trial.steps["prune"])
