"""How far a study is, read from its folder; and before it runs, how many steps it has and what they need."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.memory import estimate_memory
from shortstack.errors import CheckpointError
from shortstack.healing.memory import healing_memory
from shortstack.machine.device import Compute
from shortstack.machine.files import to_jsonable
from shortstack.machine.formats import duration, size
from shortstack.machine.memory import Memory
from shortstack.machine.tables import Table, Tabled
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.records import last_line
from shortstack.study.graph import graph_of
from shortstack.study.grid import Study, read_study
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
    """Trials and steps of a study, at most; memory of its largest step and disk for its weights, in bytes.

    missing: models that are not on this machine; nothing is known of their bytes.
    """

    title: str
    trials: int
    steps: Mapping[str, int]
    memory_bytes: int
    disk_bytes: int
    missing: Sequence[str] = ()

    def table(self) -> Table:
        needs = [("memory, about", size(self.memory_bytes)), ("disk for weights, about", size(self.disk_bytes))]
        notes = [f"Not on this machine, and not counted in bytes: {name}" for name in self.missing]
        rows = [("trials", self.trials), *self.steps.items(), *needs]
        return Table.of(self.title or "study", ("dry run", "to do, at most"), rows, notes=notes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_study(path: str | Path, *, keep: str = "best") -> StudyPlan:
    """Count the trials and steps of the study in a YAML file, and what they need. Nothing runs, nothing is downloaded.

    Raises:
        InputError, DataError: as run_study(), but for the device.
    """
    RunOptions(keep=keep)
    study = read_study(path)
    opened = {name: model for name in study.models if (model := _opened(name))}
    models = {name: Model({"config": name}) for name in study.models}
    for name, model in opened.items():
        models[name] = replace(models[name], layers=model.anatomy.layers, sizes=model.sizes)
    graph, steps = graph_of(study, path, models), dict[str, tuple[Step, Trial]]()
    for trial in study.trials:
        for step in graph.steps(trial, lambda _key: None)[1].values():
            steps.setdefault(step.key, (step, trial))
    known = [(step, trial, opened[trial.model]) for step, trial in steps.values() if trial.model in opened]
    memory = [_memory(study, step, model).nbytes for step, _, model in known]
    written = [(trial, _pruned_bytes(trial, model)) for step, trial, model in known if step.writes_weights]
    kinds = dict(sorted(Counter(step.kind for step, _ in steps.values()).items()))
    missing = [name for name in study.models if name not in opened]
    return StudyPlan(study.title, len(study.trials), kinds, max(memory, default=0), _disk_bytes(written, keep), missing)


def _opened(name: str) -> Checkpoint | None:
    try:
        return open_model(name, download=False)
    except CheckpointError:
        return None


def _memory(study: Study, step: Step, base: Checkpoint) -> Memory:
    """Estimate the memory of measuring or healing the base model, which takes more than a pruned one; 0 for other steps."""
    if step.kind == "evaluate":
        return estimate_memory(base, Compute(dtype=study.dtype), writes=study.evaluation.probes)
    return healing_memory(base, step.arguments["options"].config) if step.kind in ("heal", "rounds") else Memory()


def _pruned_bytes(trial: Trial, base: Checkpoint) -> int:
    """Estimate the bytes of a pruned model."""
    layers = base.anatomy.layers
    kept = layers - trial.removed(Model({}, layers, base.sizes))
    return base.sizes.other_bytes + sum(base.sizes.layer_bytes) * kept // layers


def _disk_bytes(written: Sequence[tuple[Trial, int]], keep: str) -> int:
    """Add up the weights that stay, and the two checkpoints that the largest step reads and writes."""
    stays = {"all": [nbytes for _, nbytes in written], "none": []}
    stays["best"] = [*{trial.size: nbytes for trial, nbytes in written}.values()]
    return sum(stays[keep]) + (0 if keep == "all" else sum(sorted(stays["all"])[-2:]))
