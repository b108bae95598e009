"""run_study(): the steps of a study, each once, in workers; what is done is never run again.

This process hands steps to workers, moves their output to its place and writes the run store, which no other does. A step is
done when its result is committed, after its folder has its name. Killed at any moment and started again, it continues.
"""

from __future__ import annotations

import json
import shutil
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from shortstack.errors import DiskFullError, TrainingError
from shortstack.machine.device import pick_device
from shortstack.machine.files import atomic_write, disk_full, finite, to_jsonable
from shortstack.machine.progress import Progress, silent
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.study.graph import Graph, graph_of
from shortstack.study.grid import Resources, Study, read_study
from shortstack.study.status import StudyStatus, study_status
from shortstack.study.steps import Job, Step, open_model, perform
from shortstack.study.trial import Model, Trial
from shortstack.study.workers import Launch, RunOptions

PACE = 1.0  # seconds between two updates of the progress


def run_study(
    path: str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    ray: str | None = None,
    keep: str = "best",
    launcher: Callable[[], AbstractContextManager[Launch]] | None = None,
    progress: Progress = silent,
) -> StudyStatus:
    """Run the steps of the study in a YAML file that are not done yet; all results are in the folder `out`.

    workers: steps at once. ray: the address of a Ray cluster to run them on. keep: which weights stay when no step needs
    them: best (of each model and size of the cut, those with the lowest loss on the first text), all, or none. launcher:
    another way to run steps.

    Raises:
        InputError: the file is wrong, a model, text, task or device does not exist, or `out` is in use.
        PlanError: a model has too few layers for a trial.
        DiskFullError: the disk is full; the same call continues.
    """
    launcher = launcher or RunOptions(workers, ray, keep).launch
    study, folder = read_study(path), Folder(Path(out))
    with folder.held(), Store.open(folder) as store:
        graph = graph_of(study, path, _models(study, progress))
        with atomic_write(folder.study) as partial:
            shutil.copy(path, partial)
        store.restart()
        folder.clear_partial()
        with launcher() as launch:
            if launch.here:
                pick_device(study.device)
            store.note(title=study.title, finished=False)
            run = _StudyRun(graph, folder, store, launch, keep, progress)
            run.run()
        store.note(finished=True)
        folder.clear_partial(states=bool(run.failed))
    return replace(study_status(out), ran=run.ran)


def _models(study: Study, progress: Progress) -> dict[str, Model]:
    names, models = study.models, {}
    for number, name in enumerate(names, start=1):
        checkpoint = open_model(name, progress=progress)
        models[name] = Model(checkpoint.identity, checkpoint.anatomy.layers, checkpoint.sizes)
        progress("reading models", number, len(names))
    return models


class _StudyRun:
    """Hands steps to workers, stores their results, and removes weights that no step needs."""

    def __init__(
        self, graph: Graph, folder: Folder, store: Store, launch: Launch, keep: str, progress: Progress
    ) -> None:
        self.graph, self.folder, self.store, self.launch = graph, folder, store, launch
        self.keep, self.progress = keep, progress
        self.results: dict[str, Mapping[str, Any]] = dict(store.results())
        self.failed = set[str]()
        self.running: dict[Future[Any], Step] = {}
        self.ran = self.total = 0
        self.recorded: dict[str, Any] = {}  # the state of each trial in the store
        self.paths: list[tuple[Trial, dict[str, Step]]] = []

    def run(self) -> None:
        self._advance()
        while self.running:
            finished, _ = wait(self.running, timeout=PACE, return_when=FIRST_COMPLETED)
            for future in finished:
                self._finish(self.running.pop(future), future)
            if finished:
                self._advance()
            self._show()

    def _advance(self) -> None:
        """Start the steps that can run, record the states of trials, and remove weights that no step needs."""
        self.paths, every = [], set[str]()
        for trial in self.graph.study.trials:
            known, foreseen = self.graph.steps(trial, self.results.get)
            self.paths.append((trial, known))
            every |= {step.key for step in foreseen.values()}
        self._start_all()
        for number, (trial, path) in enumerate(self.paths):
            self._record(number, trial, path)
        if len(every) != self.total:
            self.total = len(every)
            self.store.note(steps=self.total)
        if self.keep != "all":
            self._remove_weights()

    # Steps that can run

    def _start_all(self) -> None:
        """Start steps up to the launcher's width; one that runs alone comes first, when no other step runs."""
        for step in sorted(self._ready(), key=lambda step: not step.alone):
            together = [step, *self.running.values()]
            if len(together) > (1 if any(member.alone for member in together) else self.launch.width):
                return
            self._start(step)

    def _ready(self) -> Iterator[Step]:
        taken = {step.key for step in self.running.values()}
        for _, path in self.paths:
            if any(step.key in self.failed for step in path.values()):
                continue
            missing = self._missing(path)
            for step in missing.values():
                if step.key not in taken and missing.keys().isdisjoint(step.places.values()):
                    taken.add(step.key)
                    yield step

    def _missing(self, path: Mapping[str, Step]) -> dict[str, Step]:
        """Return, by key, the steps without a result, and those whose weights they read and that were removed."""
        writers = {step.key: step for step in path.values() if step.writes_weights}
        missing = {step.key: step for step in path.values() if step.key not in self.results}
        left = [*missing.values()]
        while left:
            for place in left.pop().places.values():
                if place in writers and place not in missing and not self.folder.has_weights(place):
                    missing[place] = writers[place]
                    left.append(writers[place])  # which may read removed weights, too
        return missing

    def _start(self, step: Step) -> None:
        if step.key not in self.results:
            self.store.begin(step.key, step.kind, step.arguments, step.inputs)
        job = Job(
            step.key,
            step.kind,
            step.arguments,
            {name: self._place(place) for name, place in step.places.items()},
            self.results[step.places["score"]] if "score" in step.places else None,
            output=self.folder.partial(step.key),
            log=self.folder.log(step.key),
            device=self.graph.study.device,
        )
        self.running[self.launch.submit(perform, job, self._resources(step))] = step

    def _place(self, place: str) -> str:
        return place if place in self.graph.models else str(self.folder.artefacts(place))

    def _resources(self, step: Step) -> Resources:
        resources = self.graph.study.resources.get(step.kind, Resources())
        on_cpu = resources.gpus is None and self.graph.study.device == "cpu"
        return resources.model_copy(update={"gpus": 0.0}) if on_cpu else resources

    # Steps that have run

    def _finish(self, step: Step, future: Future[Any]) -> None:
        """Store what a step returned: its folder gets its name, then its result is committed."""
        error, before = future.exception(), self.results.get(step.key)
        if error:
            self._fail(step, error)
            return
        outcome = json.loads(json.dumps(finite(to_jsonable(future.result()))))  # as a later run reads it
        result = outcome["result"]
        if before and before["identity"] != result["identity"]:
            self._fail(step, TrainingError("made again, since its weights were removed, but the weights differ"))
            return
        self.folder.take(step.key)
        self.ran += 1
        if not before:
            self.store.end(step.key, "done", outcome)
            self.results[step.key] = result

    def _fail(self, step: Step, error: BaseException) -> None:
        """Record a failure, which ends the trials that need the step; a full disk ends the study."""
        if isinstance(error, OSError) and (full := disk_full(error)):
            raise full from error
        if isinstance(error, DiskFullError):
            raise error
        self.failed.add(step.key)
        self.store.end(step.key, "failed", {"error": "".join(traceback.format_exception(error))})

    # States of trials, and weights on the disk

    def _record(self, number: int, trial: Trial, path: Mapping[str, Step]) -> None:
        keys = {role: step.key for role, step in path.items()}
        state = self._state({*keys.values()})
        if self.recorded.get(trial.id) != (state, keys):
            self.recorded[trial.id] = state, keys
            self.store.put_trial(trial.id, number=number, settings=trial.settings(), state=state, steps=keys)

    def _state(self, keys: set[str]) -> str:
        if keys & self.failed:
            return "failed"
        if keys <= self.results.keys():
            return "done"
        return "running" if keys & {step.key for step in self.running.values()} else "waiting"

    def _show(self) -> None:
        done = {key for _, path in self.paths for step in path.values() if (key := step.key) in self.results}
        notes = [f"{step.kind} {self.folder.last_line(step.key)}".strip() for step in self.running.values()]
        self.progress("study", len(done), self.total, note="; ".join(notes))

    def _remove_weights(self) -> None:
        """Remove weights that no step reads any more; a trial that failed keeps what it needs when it runs again."""
        needed = self._best() if self.keep == "best" else set[str]()
        needed |= {place for step in self.running.values() for place in step.places.values()}
        written = set[str]()
        for _, path in self.paths:
            needed |= {place for step in self._missing(path).values() for place in step.places.values()}
            written |= {step.key for step in path.values() if step.writes_weights and step.key in self.results}
        for key in written - needed:
            for file in self.folder.weights(key):
                file.unlink()

    def _best(self) -> set[str]:
        """Find the last models with the lowest loss for each base model and size of the cut, and all without a loss."""
        unmeasured, measured = set[str](), defaultdict[Any, list[tuple[float, str]]](list)
        for trial, path in self.paths:
            if self.recorded[trial.id][0] != "done":
                continue
            evaluated = path.get("evaluate_healed") or path["evaluate_pruned"]
            losses = [text["loss"] for text in (self.results[evaluated.key].get("perplexity") or {}).values()]
            last = (path.get("heal") or path["prune"]).key
            if not losses:
                unmeasured.add(last)
            elif losses[0] is not None:
                measured[trial.size].append((losses[0], last))
        return unmeasured | {min(group)[1] for group in measured.values()}
