"""How far a study is, read from its folder; and before it runs, how many steps it has and what they need."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from shortstack.checkpoint import Checkpoint, Sizes
from shortstack.errors import CheckpointError
from shortstack.machine.files import to_jsonable
from shortstack.machine.formats import duration, size
from shortstack.machine.tables import Table, Tabled
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.records import last_line
from shortstack.study.graph import graph_of
from shortstack.study.grid import read_study
from shortstack.study.steps import Step, open_model
from shortstack.study.trial import Model, Trial
from shortstack.study.workers import RunOptions


@dataclass(frozen=True, repr=False)
class StudyStatus(Tabled):
    """State of a study: running, stopped or finished. steps: at most, since trials may turn out to share more.

    trials: by state. running: kind, seconds and progress of each running step. failures: key, kind, error and log of each
    failed step. ran: steps that this call has run.
    """

    output: Path
    title: str
    state: str
    trials: Mapping[str, int]
    done: int
    steps: int
    running: Sequence[Mapping[str, Any]]
    failures: Sequence[Mapping[str, Any]]
    ran: int = 0

    @property
    def failed(self) -> int:
        return self.trials.get("failed", 0)

    def table(self) -> Table:
        trials = ", ".join(f"{count:,} {state}" for state, count in self.trials.items())
        now = f", {self.ran:,} of them now" if self.ran else ""
        rows = [("trials", trials or "none"), ("steps", f"{self.done:,} of at most {self.steps:,} done{now}")]
        rows += [(step["kind"], f"{duration(step['seconds'])} {step['progress']}".strip()) for step in self.running]
        notes = [f"Failed: {step['kind']}, {last_line(step['error'])}, see {step['log']}" for step in self.failures]
        return Table.of(self.title or "study", ("study", self.state), rows, notes=notes)

    def to_dict(self) -> dict[str, Any]:
        return dict(to_jsonable(self))


def study_status(runs: str | Path) -> StudyStatus:
    """Read the state of the study in a folder.

    Raises:
        DataError: no study ran there.
    """
    folder = Folder(Path(runs))
    with Store.open(folder, read_only=True) as store:
        noted, trials = store.noted(), store.trials()
        keys = {key for trial in trials for key in trial["steps"].values()}
        steps = [step for step in store.steps() if step["key"] in keys]
    held, by_state = folder.is_held, defaultdict[str, list[dict[str, Any]]](list)
    for step in steps:
        by_state[step["state"]].append({**step, "log": str(folder.log(step["key"]))})
    running = [
        {"kind": step["kind"], "seconds": time.time() - step["started"], "progress": folder.last_line(step["key"])}
        for step in by_state["running"]
    ]
    return StudyStatus(
        folder.root,
        noted.get("title", ""),
        "running" if held else "finished" if noted.get("finished") else "stopped",
        dict(Counter("waiting" if trial["state"] == "running" and not held else trial["state"] for trial in trials)),
        len(by_state["done"]),
        noted.get("steps", 0),
        running if held else [],
        [{name: step[name] for name in ("key", "kind", "error", "log")} for step in by_state["failed"]],
    )


@dataclass(frozen=True, repr=False)
class StudyPlan(Tabled):
    """Trials and steps of a study, at most, and the disk for its weights; None if a model is not on this machine."""

    title: str
    trials: int
    steps: Mapping[str, int]
    disk_bytes: int | None
    unknown: Sequence[str] = ()

    def table(self) -> Table:
        disk = "unknown" if self.disk_bytes is None else size(self.disk_bytes)
        rows = [("trials", self.trials), *self.steps.items(), ("disk for weights, at most", disk)]
        return Table.of(self.title or "study", ("dry run", "to do, at most"), rows, notes=self.unknown)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_study(path: str | Path, *, keep: str = "best") -> StudyPlan:
    """Count the trials and steps of the study in a YAML file, and the disk they need. Nothing runs, nothing is downloaded.

    Raises:
        InputError, DataError: as run_study(), but for the device.
    """
    RunOptions(keep=keep)
    study = read_study(path)
    opened = {name: _opened(name) for name in study.models}
    models = {
        name: Model({"config": name}, each.anatomy.layers, each.sizes) if each else Model({"config": name})
        for name, each in opened.items()
    }
    graph, steps = graph_of(study, path, models), dict[str, tuple[Step, Trial]]()
    for trial in study.trials:
        for step in graph.steps(trial, lambda _key: None)[1].values():
            steps.setdefault(step.key, (step, trial))
    written = [(trial, models[trial.model]) for step, trial in steps.values() if step.writes_weights]
    return StudyPlan(
        study.title,
        len(study.trials),
        dict(sorted(Counter(step.kind for step, _ in steps.values()).items())),
        _disk_bytes(written, keep) if all(opened.values()) else None,
        [f"{name} is not on this machine" for name, model in opened.items() if model is None],
    )


def _opened(name: str) -> Checkpoint | None:
    try:
        return open_model(name, download=False)
    except CheckpointError:
        return None


def _disk_bytes(written: Sequence[tuple[Trial, Model]], keep: str) -> int:
    """Add up the weights that stay, and the two checkpoints that the largest step reads and writes."""
    sizes = {number: _kept_bytes(trial, model) for number, (trial, model) in enumerate(written)}
    best = {trial.size: sizes[number] for number, (trial, _) in enumerate(written)}
    stays = {"all": sum(sizes.values()), "best": sum(best.values()), "none": 0}[keep]
    return stays + (0 if keep == "all" else sum(sorted(sizes.values())[-2:]))


def _kept_bytes(trial: Trial, model: Model) -> int:
    """Estimate the bytes of a pruned model."""
    sizes, kept = cast("Sizes", model.sizes), model.layers - trial.removed(model)
    return sizes.other_bytes + sum(sizes.layer_bytes) * kept // model.layers
