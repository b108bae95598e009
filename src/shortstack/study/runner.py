"""run_study(): a study's steps, each once, in workers; what is finished is never run again.

This process hands steps over, puts what workers wrote in its place and writes the run store, which nobody else does. A step
is done when its result is committed, after its folder has got its name. Killed at any moment and started again, it goes on.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint.file_names import CONFIG
from shortstack.errors import DiskFullError, InputError
from shortstack.machine.device import pick_device
from shortstack.machine.files import atomic_write, finite, to_jsonable
from shortstack.machine.options import check_choice_of
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.tables import Table, Tabled
from shortstack.machine.yamlfile import parsed
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.records import last_line
from shortstack.study.graph import Graph, Paths, sources, texts
from shortstack.study.grid import Resources, Study, in_file, read_study
from shortstack.study.progress import PACE, read_progress
from shortstack.study.steps import Contents, Job, Step, check_text, expanded, open_model, perform, text_digest
from shortstack.study.trial import Trial
from shortstack.study.workers import KEEPS, Launch, local


@dataclass(frozen=True, repr=False)
class StudyOutcome(Tabled):
    """How a study ended. steps: those that ran now; skipped: those that were there already."""

    output: Path
    trials: int
    done: int
    failed: int
    steps: int
    skipped: int
    failures: Sequence[Mapping[str, Any]]

    def table(self) -> Table:
        rows = [
            ("trials done", f"{self.done:,} of {self.trials:,}"),
            ("trials failed", f"{self.failed:,}"),
            ("steps run now", f"{self.steps:,}"),
            ("steps done before", f"{self.skipped:,}"),
        ]
        notes = []
        for step in self.failures:
            notes += [f"Failed: {step['kind']}, {last_line(step['error'])}", f"  log {step['log']}"]
        return Table.of(str(self.output), ("study", ""), rows, notes=notes)

    def to_dict(self) -> dict[str, Any]:
        return dict(to_jsonable(self))


def run_study(
    path: str | Path,
    out: str | Path,
    *,
    launcher: Callable[[], AbstractContextManager[Launch]] = local,
    keep: str = "best",
    progress: Progress = in_notebooks,
) -> StudyOutcome:
    """Run what is not done yet of the study in a YAML file; everything it gives lies in the folder `out`.

    launcher: functools.partial(local, 4) or functools.partial(ray, "auto"). keep: which weights stay
    once nothing needs them: those of the lowest loss for each model and drop, on the first text that they are evaluated on,
    all, or none.

    Raises:
        InputError: the file is wrong, a model, text, task or device is not there, a model has too few layers for a trial,
            or `out` is of another study, or in use.
        DiskFullError: the disk has no room; the same call goes on.
    """
    check_choice_of("keep", keep, KEEPS)
    study, folder = read_study(path), Folder(Path(out))
    check_inputs(study, path)
    check_outside(folder)
    with folder.held(), Store.open(folder) as store:
        check_same(folder, study, store)
        models = _models(study, progress)
        with in_file(path):
            for trial in study.trials:
                trial.check_fits(models[trial.model].layers or 0)
        graph = Graph(study, models, {source: text_digest(source) for source in sources(study)})
        with atomic_write(folder.study) as partial:
            shutil.copy(path, partial)
        store.forget_running()
        folder.clear_partial()
        with launcher() as launch:
            if launch.here:
                with in_file(path, "compute"):
                    pick_device(study.compute.device)
            store.note(title=study.title, workers=launch.width, finished="")
            run = _StudyRun(graph, folder, store, launch, keep, progress)
            run.to_the_end()
        store.note(finished=time.time())
        folder.clear_partial(states=bool(run.failed))
        return run.outcome()


def check_inputs(study: Study, path: str | Path) -> None:
    """Refuse an evaluation, or texts and data, that no step could use."""
    with in_file(path, "evaluation"):
        study.evaluation.check()
    with in_file(path):
        for source in texts(study):
            check_text(source)


def check_same(folder: Folder, study: Study, store: Store) -> None:
    """Refuse a folder of another study, unless this one only adds trials to it.

    The trials before are those in the store: what a recipe's file says may have changed since.
    """
    if not folder.study.exists():
        return
    before = parsed(folder.study.read_text(encoding="utf-8"), Study, where=str(folder.study))
    for part in ("evaluation", "compute"):
        then, now = (getattr(version, part).model_dump() for version in (before, study))
        for name in then:
            if then[name] != now[name]:
                raise _another(folder, f"{part}.{name}: {json.dumps(then[name])}", json.dumps(now[name]))
    now = {trial.id for trial in study.trials}
    for trial in store.trials():
        if trial["id"] not in now:
            raise _another(folder, f"the trial {json.dumps(trial['settings'])}", "none")


def check_outside(folder: Folder) -> None:
    """Refuse to run a study in a checkpoint's folder."""
    place = folder.root.resolve()
    for above in (place, *place.parents):
        if (above / CONFIG).exists() and any(above.glob("*.safetensors")):
            location, expected = f"it is in {above}", "a folder outside a model's"
            raise InputError(location, expected=expected, fix="name another output", where=folder.root)


def _another(folder: Folder, expected: str, now: str) -> InputError:
    fix = "name another output; trials can be added, not changed"
    return InputError(now, expected=f"{expected}, as in {folder.study}", fix=fix, where=folder.root)


def _models(study: Study, progress: Progress) -> dict[str, Contents]:
    names = list(dict.fromkeys(trial.model for trial in study.trials))
    models = {}
    for number, name in enumerate(names, start=1):
        models[name] = Contents.of(open_model(expanded(name), progress=progress))
        progress("reading models", number, len(names))
    return models


class _StudyRun:
    """Hands steps over, takes their results in, and keeps the disk in bounds."""

    def __init__(
        self, graph: Graph, folder: Folder, store: Store, launch: Launch, keep: str, progress: Progress
    ) -> None:
        self.graph, self.folder, self.store, self.launch = graph, folder, store, launch
        self.keep, self.progress = keep, progress
        self.results: dict[str, Mapping[str, Any]] = dict(store.results())
        self.before = frozenset(self.results)
        self.failed: set[str] = set()
        self.stopped: list[Trial] = []  # failed: what they need stays, as the study may be run again
        self.full: DiskFullError | None = None  # of a disk without room, where a step met one
        self.running: dict[Future[Any], Step] = {}
        self.ran = 0
        self.recorded: dict[str, Any] = {}  # what the store says of each trial, and of the steps to come
        self.paths = Paths(graph, lambda step: self.results.get(step.key))
        self.at_most: dict[str, str] = {}  # the kind of each step that there will be at most, by its key
        self.open = dict(enumerate(graph.study.trials))  # neither done nor failed
        self.done: dict[int, tuple[Trial, dict[str, Step]]] = {}  # the done trials

    def to_the_end(self) -> None:
        self._go_on()
        while self.running:
            finished, _ = wait(self.running, timeout=PACE, return_when=FIRST_COMPLETED)
            for future in finished:
                self._finish(self.running.pop(future), future)
            if finished:
                self._go_on()
            else:
                self._tell()
        if self.full:
            raise self.full

    def _go_on(self) -> None:
        """See what has ended, hand over what can run now, and say that it runs."""
        self._update()
        if not self.full:
            self._hand_over()
            self._update()

    def outcome(self) -> StudyOutcome:
        steps = {step.key for _, steps in self.done.values() for step in steps.values()}
        failures = [
            {"key": row["key"], "kind": row["kind"], "error": row["error"], "log": str(self.folder.log(row["key"]))}
            for row in self.store.states()
            if row["state"] == "failed"
        ]
        trials, done = len(self.graph.study.trials), len(self.done)
        return StudyOutcome(self.folder.root, trials, done, trials - done, self.ran, len(steps & self.before), failures)

    # What can run

    def _hand_over(self) -> None:
        """Give workers the steps that can run: first those that run alone, once nothing else does; then by the trials."""
        for step in sorted(self._ready(), key=lambda step: not step.alone):
            together = [step, *self.running.values()]
            if len(together) > (1 if any(member.alone for member in together) else self.launch.width):
                return
            self._start(step)

    def _ready(self) -> Iterator[Step]:
        taken = {step.key for step in self.running.values()} | self.failed
        for trial in self.open.values():
            wanted = self._wanted(self.paths.steps(trial))
            for step in wanted.values():
                if step.key not in taken and wanted.keys().isdisjoint(step.reads.values()):
                    taken.add(step.key)
                    yield step

    def _wanted(self, steps: Mapping[str, Step]) -> dict[str, Step]:
        """Return, by their keys, the steps without a result, and those whose weights they read and which went meanwhile."""
        makers = {step.key: step for step in steps.values() if step.writes_weights}
        wanted = {step.key: step for step in steps.values() if step.key not in self.results}
        left = [*wanted.values()]
        while left:
            for place in left.pop().reads.values():
                if place in makers and place not in wanted and not self.folder.has_weights(place):
                    wanted[place] = makers[place]
                    left.append(makers[place])  # which may read such weights, too
        return wanted

    def _start(self, step: Step) -> None:
        places = {name: self._place(place) for name, place in step.reads.items()}
        call = replace(step, arguments=expanded(step.arguments))
        if step.key not in self.results:
            command = shlex.join(["shortstack", *call.command_line(places)])
            self.store.begin(step.key, step.kind, step.arguments, step.inputs, command)
        job = Job(
            step.key,
            call,
            places,
            given={name: self.results[place] for name, place in step.reads.items() if name == "score"},
            output=self.folder.partial(step.key).absolute(),  # a worker of a cluster has another working directory
            log=self.folder.log(step.key).absolute(),
            progress=self.folder.progress(step.key).absolute(),
            device=self.graph.study.compute.device,
        )
        self.running[self.launch.submit(perform, job, self._needed(step))] = step

    def _place(self, place: str) -> str:
        return str(expanded(place)) if place in self.graph.models else str(self.folder.artefacts(place))

    def _needed(self, step: Step) -> Resources:
        needed = self.graph.study.resources.get(step.kind, Resources())
        without = needed.gpus is None and self.graph.study.compute.device == "cpu"
        return needed.model_copy(update={"gpus": 0.0}) if without else needed

    # What has run

    def _finish(self, step: Step, future: Future[Any]) -> None:
        """Take in what a step gave: its folder gets its name, then its result is committed."""
        lost = future.exception()
        ended: dict[str, Any] = {"error": "".join(traceback.format_exception(lost))} if lost else dict(future.result())
        self.full = ended.pop("full", self.full)
        before = self.results.get(step.key)
        if "result" in ended:
            ended["result"] = json.loads(json.dumps(finite(ended["result"])))  # as a later run would read it
            if before and before["weights_sha256"] != ended["result"]["weights_sha256"]:
                ended = {"error": "rebuilt since its weights were removed, but the new weights differ from the old"}
        if "result" not in ended:
            self.failed.add(step.key)
            self.store.end(step.key, "failed", ended)
            return
        self.folder.take(step.key)
        self.ran += 1
        if not before:
            self.store.end(step.key, "done", ended)
            self.results[step.key] = ended["result"]
            self.paths.arrived(step.key)

    # What the store says of trials, and which weights stay on disk

    def _update(self) -> None:
        """See which trials are done or failed, tell the store, and remove weights that nothing needs."""
        running = {step.key for step in self.running.values()}
        needed: set[str] = set()
        for number, trial in list(self.open.items()):
            steps = self.paths.steps(trial)
            state = self._state(steps, running)
            reads = {place for step in self._wanted(steps).values() for place in step.reads.values()}
            if state in ("waiting", "running"):
                needed |= reads
            else:
                del self.open[number]
            if state == "failed":
                self.stopped.append(trial)
            if state == "done":
                self.done[number] = trial, steps
            self._record(trial, number, state, steps)
        self._record_expected()
        again = [step for trial in self.stopped for step in self._wanted(self.paths.steps(trial)).values()]
        self._remove_weights(needed | {place for step in again for place in step.reads.values()})

    def _state(self, steps: Mapping[str, Step], running: set[str]) -> str:
        keys = {step.key for step in steps.values()}
        if keys & self.failed:
            return "failed"
        if keys <= self.results.keys():
            return "done"
        return "running" if keys & running else "waiting"

    def _record(self, trial: Trial, number: int, state: str, steps: Mapping[str, Step]) -> None:
        keys = {role: step.key for role, step in steps.items()}
        if self.recorded.get(trial.id) != (state, keys):
            self.recorded[trial.id] = state, keys
            self.store.set_trial(trial.id, {"number": number, "settings": trial.settings(), "state": state}, keys)

    def _record_expected(self) -> None:
        self.at_most = self.paths.at_most()
        expected = dict(sorted(Counter(self.at_most.values()).items()))
        if self.recorded.get("expected") != expected:
            self.recorded["expected"] = expected
            self.store.note(expected=expected)
        self._tell()

    def _tell(self) -> None:
        total, done = len(self.at_most), sum(key in self.results for key in self.at_most)
        said = [(step.kind, read_progress(self.folder.progress(step.key))) for step in self.running.values()]
        note = ", ".join(f"{kind}: {progress}" if progress else kind for kind, progress in said)
        self.progress("study", done, total, note=note)

    def _remove_weights(self, needed: set[str]) -> None:
        if self.keep == "all":
            return
        needed = needed | (self._best() if self.keep == "best" else set())
        needed |= {place for step in self.running.values() for place in step.reads.values()}
        written = {key for key, result in self.results.items() if "weights_sha256" in result}
        for key in written - needed:
            for path in self.folder.weights(key):
                path.unlink()

    def _best(self) -> set[str]:
        """Find the last checkpoints of the done trials with the lowest loss for each model and drop; all that have none."""
        unmeasured, measured = set(), defaultdict[Any, list[tuple[float, str]]](list)
        for trial, steps in self.done.values():
            evaluated = steps.get("evaluate_healed") or steps["evaluate_pruned"]
            losses = [text["loss"] for text in (self.results[evaluated.key].get("perplexity") or {}).values()]
            last = (steps.get("heal") or steps["prune"]).key
            if not losses:
                unmeasured.add(last)
            elif losses[0] is not None:
                measured[trial.model, trial.drop].append((losses[0], last))
        return unmeasured | {min(group)[1] for group in measured.values()}
