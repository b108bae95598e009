"""A preview of run_study(): its steps at most, and the disk for their weights. Nothing is run, and no model is fetched."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.source import NOT_HERE
from shortstack.errors import InputError
from shortstack.machine.formats import size
from shortstack.machine.tables import Table, Tabled
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.study.graph import Graph, foreseen, sources
from shortstack.study.grid import in_file, read_study
from shortstack.study.runner import check_inputs, check_outside, check_same
from shortstack.study.step_types import TurnsStep
from shortstack.study.steps import Contents, Step, expanded, open_model, text_digest
from shortstack.study.trial import Trial


@dataclass(frozen=True, repr=False)
class StepCounts(Tabled):
    """asked: steps of all trials, by kind; steps: at most so many are run, since trials share them.

    disk_bytes: weights at most, all kept; least_disk_bytes: none kept, with one worker. None where a model is not here, as
    `unknown` says.
    """

    title: str
    trials: int
    asked: Mapping[str, int]
    steps: Mapping[str, int]
    disk_bytes: int | None
    least_disk_bytes: int | None
    unknown: tuple[str, ...] = ()

    def table(self) -> Table:
        rows = [(kind, self.asked[kind], steps) for kind, steps in self.steps.items()]
        rows.append(("all", sum(self.asked.values()), sum(self.steps.values())))
        most, least = (
            "unknown" if nbytes is None else size(nbytes) for nbytes in (self.disk_bytes, self.least_disk_bytes)
        )
        disk = (
            f"Weights take at most {most} of disk if all are kept, and {least} at a time, by one worker, if none are."
        )
        notes = [disk, *(f"Unknown: {reason}." for reason in self.unknown)]
        title = f"{self.title or 'study'}: {self.trials:,} trials; nothing is run"
        return Table.of(title, ("step", "without sharing", "to run, at most"), rows, notes=notes)


def step_counts(path: str | Path, out: Path | None = None) -> StepCounts:
    """Count the steps of the study in a file, and the disk for what they write. out: its folder, if it has one.

    Raises:
        InputError, DataError: as run_study() does before its first step, but for the device.
    """
    study = read_study(path)
    check_inputs(study, path)
    if out:
        folder = Folder(out)
        check_outside(folder)
        if folder.database.exists():
            with Store.open(folder, read_only=True) as store:
                check_same(folder, study, store)
    models = {name: _opened(name) for name in dict.fromkeys(trial.model for trial in study.trials)}
    known = {name: Contents(name, name, model.anatomy.layers if model else None) for name, model in models.items()}
    graph = Graph(study, known, {source: text_digest(source) for source in sources(study)})
    requested, steps = Counter[str](), dict[str, tuple[Step, Trial]]()
    with in_file(path):
        for trial in study.trials:
            if model := models[trial.model]:
                trial.check_fits(model.anatomy.layers)
            for step in graph.steps(trial, foreseen)[1].values():
                requested[step.kind] += 1
                steps.setdefault(step.key, (step, trial))
        writing = [(step, trial) for step, trial in steps.values() if step.writes_weights]
        written = [_kept_bytes(models[trial.model], trial) for _, trial in writing]
    sizes = sorted(size for size in written if size is not None)
    whole = len(sizes) == len(written)
    turning = [trial for step, trial in writing if isinstance(step, TurnsStep)]
    between = max((_between_turns(models[trial.model], trial) for trial in turning), default=0)
    return StepCounts(
        study.title,
        len(study.trials),
        dict(sorted(requested.items())),
        dict(sorted(Counter(step.kind for step, _ in steps.values()).items())),
        disk_bytes=sum(sizes) + between if whole else None,
        least_disk_bytes=sum(sizes[-2:]) + between if whole else None,  # what a step reads, and what it writes
        unknown=tuple(f"model {name}: {NOT_HERE}" for name, model in models.items() if model is None),
    )


def _opened(name: str) -> Checkpoint | None:
    try:
        return open_model(expanded(name), download=False)
    except InputError as error:
        if error.found == NOT_HERE:
            return None
        raise


def _kept_bytes(model: Checkpoint | None, trial: Trial) -> int | None:
    if model is None:
        return None
    sizes, layers = model.sizes, model.anatomy.layers
    return sizes.other_bytes + sum(sizes.layer_bytes) * (layers - trial.amount(layers)) // layers


def _between_turns(model: Checkpoint | None, trial: Trial) -> int:
    """Count the bytes that lie on the disk until a healing in turns has ended: of each turn what was cut and what healed."""
    if model is None:
        return 0
    turns = math.ceil(trial.amount(model.anatomy.layers) / (trial.step or 1))
    return 2 * turns * model.weight_bytes
