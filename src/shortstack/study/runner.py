"""run_study(): a study's steps, each once, in workers; what is finished is never run again.

This process hands steps over, puts what workers wrote in its place and writes the run store, which nobody else does. A step
is done when its result is committed, after its folder has got its name. Killed at any moment and started again, it goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shortstack.checkpoint.safetensors import file_digest
from shortstack.data.sources import read_documents
from shortstack.errors import DataError, InputError, parameter
from shortstack.machine.files import digest, finite, whole
from shortstack.machine.progress import Progress, silent
from shortstack.runs import Store
from shortstack.runs.store import Folder
from shortstack.study.graph import WRITES_WEIGHTS, Contents, Graph, Step, foreseen, sources
from shortstack.study.grid import Study, expanded, read_study
from shortstack.study.same_study import check_place, check_same
from shortstack.study.steps import Task, command, contents, evaluation_options, open_model, perform
from shortstack.study.trial import Trial
from shortstack.study.workers import Launch, Needs, local

KEEPS = ("best", "all", "none")


@dataclass(frozen=True)
class Outcome:
    """How a study ended. steps: those that ran now; skipped: those that were there already."""

    folder: Path
    trials: int
    done: int
    failed: int
    steps: int
    skipped: int
    failures: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": str(self.folder),
            "trials": self.trials,
            "done": self.done,
            "failed": self.failed,
            "steps": self.steps,
            "skipped": self.skipped,
            "failures": [dict(failure) for failure in self.failures],
        }


def run_study(
    path: str | Path,
    out: str | Path,
    *,
    launcher: Callable[[], AbstractContextManager[Launch]] = local,
    artefacts: str | None = None,
    keep: str = "best",
    progress: Progress = silent,
) -> Outcome:
    """Run what is not done yet of the study in a YAML file; everything it gives lies in the folder `out`.

    launcher: functools.partial(local, 4) or functools.partial(ray, "auto"). artefacts: a URL for the steps' folders, where
    workers see no common folder. keep: which weights stay once nothing needs them: those of the lowest held-out loss for
    each model and drop, all, or none.

    Raises:
        InputError: the file is wrong, a model or text is not there, or `out` is of another study, or in use.
    """
    if keep not in KEEPS:
        raise InputError(
            parameter("keep"),
            expected=f"one of {', '.join(KEEPS)}",
            found=repr(keep),
            fix=f"write {parameter('keep', 'best')}",
        )
    study, folder = read_study(path), Folder(Path(out), artefacts)
    evaluation_options(expanded(study.evaluation.model_dump(mode="json")))  # says what is wrong before anything runs
    with folder.held(), Store.open(folder) as store:
        check_same(folder, study)
        check_place(folder, store)
        graph = Graph(study, _models(study, progress), {source: text_digest(source) for source in sources(study)})
        with whole(folder.study) as partial:
            shutil.copy(path, partial)
        store.forget_running()
        with launcher() as launch:
            store.note(title=study.title, study=digest(study.model_dump(mode="json")), workers=launch.width)
            created = store.noted().get("created", str(time.time()))
            store.note(shortstack=version("shortstack"), created=created, finished="", artefacts=folder.url or "")
            driver = _Driver(graph, folder, store, launch, keep, progress)
            driver.go()
        store.note(finished=time.time())
        return driver.outcome()


def _models(study: Study, progress: Progress) -> dict[str, Contents]:
    """What each model that a trial is of is known by."""
    names = list(dict.fromkeys(trial.model for trial in study.trials))
    found = {}
    for number, name in enumerate(names, start=1):
        found[name] = contents(open_model(expanded(name), progress=progress))
        progress("reading models", number, len(names))
    return found


def text_digest(source: str) -> str:
    """Digest of a text or of a folder of files; a hub dataset is known by its name.

    Raises:
        DataError: there is no such file.
    """
    name = str(expanded(source))
    path = Path(name)
    if path.is_dir():
        return digest(
            {str(each.relative_to(path)): file_digest(each) for each in sorted(path.rglob("*")) if each.is_file()}
        )
    if path.is_file():
        return file_digest(path)
    if name == "pydoc":
        parts = [text for held_out in (False, True) for text in read_documents(name, held_out=held_out)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if name.endswith((".txt", ".json", ".jsonl")) or "/" not in name or name.startswith((".", "/", "~")):
        raise DataError(source, expected="a file, pydoc, or a hub dataset org/name", found="none", fix="check the path")
    return name


class _Driver:
    """Hands steps over, takes their results in, and keeps the disk in bounds."""

    def __init__(
        self, graph: Graph, folder: Folder, store: Store, launch: Launch, keep: str, progress: Progress
    ) -> None:
        self.graph, self.folder, self.store, self.launch = graph, folder, store, launch
        self.keep, self.progress = keep, progress
        self.results: dict[str, Mapping[str, Any]] = dict(store.results())
        self.before = frozenset(self.results)
        self.failed: set[str] = set()
        self.running: dict[Future[Any], Step] = {}
        self.ran = 0
        self.weights: dict[str, bool] = {}  # whether a step's folder has some
        self.told: dict[str, Any] = {}  # what the store says of each trial, and of the steps to come
        self.open: list[Trial] = list(graph.study.trials)  # neither done nor failed
        self.final: dict[str, tuple[Trial, dict[str, Step]]] = {}  # the done trials

    def go(self) -> None:
        """Run until nothing is left that can run."""
        self._look()
        self._hand_over()
        while self.running:
            finished, _ = wait(self.running, return_when=FIRST_COMPLETED)
            for future in finished:
                self._finish(self.running.pop(future), future)
            self._look()
            self._hand_over()
            self._look()  # what was handed over runs

    def outcome(self) -> Outcome:
        steps = {step.key for _, steps in self.final.values() for step in steps.values()}
        failures = [
            {"key": row["key"], "kind": row["kind"], "error": row["error"], "log": str(self.folder.log(row["key"]))}
            for row in self.store.failures()
        ]
        trials = len(self.graph.study.trials)
        done = len(self.final)
        return Outcome(self.folder.root, trials, done, trials - done, self.ran, len(steps & self.before), failures)

    def _result(self, step: Step) -> Mapping[str, Any] | None:
        return self.results.get(step.key)

    # What can run

    def _hand_over(self) -> None:
        """Give workers the steps that can run, those of earlier trials first."""
        for step in self._ready():
            if len(self.running) >= self.launch.width:
                return
            self._start(step)

    def _ready(self) -> Iterator[Step]:
        taken = {step.key for step in self.running.values()} | self.failed
        for trial in self.open:
            steps = self.graph.steps(trial, self._result)
            for step in steps.values():
                if step.key in self.results or step.key in taken:
                    continue
                gone = self._gone(step, steps)
                first = gone or step
                if first.key not in taken:
                    taken.add(first.key)
                    yield first

    def _gone(self, step: Step, steps: Mapping[str, Step]) -> Step | None:
        """The step whose weights this one reads, where they were removed before another trial was found to need them."""
        makers = {each.key: each for each in steps.values() if each.kind in WRITES_WEIGHTS}
        read = [makers[place] for place in step.reads.values() if place in makers]
        return next((maker for maker in read if not self._has_weights(maker.key)), None)

    def _start(self, step: Step) -> None:
        places = {name: self._place(place) for name, place in step.reads.items()}
        if step.key not in self.results:
            row = {"kind": step.kind, "arguments": step.arguments, "inputs": step.inputs}
            self.store.begin(step.key, {**row, "command": command(step, places)})
        task = Task(
            step.key,
            step.kind,
            expanded(step.arguments),
            places,
            {name: self.results[place] for name, place in step.reads.items() if name == "score"},
            self.folder.partial(step.key),
            self.folder.log(step.key),
            self.graph.study.compute.device,
            self.folder.url,
        )
        self.running[self.launch.submit(perform, task, self._needs(step))] = step

    def _place(self, place: str) -> str:
        """Where an input is: a model by its name, or the folder of a step."""
        return str(expanded(place)) if place in self.graph.models else self.folder.artefacts.place(place)

    def _needs(self, step: Step) -> Needs:
        needs = self.graph.study.resources.get(step.kind)  # type: ignore[call-overload]  # a kind is a word
        if needs is None:
            return Needs()
        return Needs(needs.cpus, needs.gpus, int(needs.memory * 1e9) if needs.memory else None)

    # What has run

    def _finish(self, step: Step, future: Future[Any]) -> None:
        """Take in what a step gave: its folder gets its name, then its result is committed."""
        lost = future.exception()
        told = "".join(traceback.format_exception(lost)) if lost else None
        found: dict[str, Any] = {"error": told} if lost else dict(future.result())
        if "log" in found:
            with self.folder.log(step.key).open("a", encoding="utf-8") as log:
                log.write(found.pop("log"))
        again = self.results.get(step.key)
        if "result" in found:
            found["result"] = json.loads(json.dumps(finite(found["result"])))  # as a later run would read it
            if again and again["weights_sha256"] != found["result"]["weights_sha256"]:
                found = {"error": "made again because its weights were removed, it has other weights than before"}
        if "result" not in found:
            self.failed.add(step.key)
            self.store.end(step.key, "failed", found)
            return
        self._put(step.key)
        self.ran += 1
        if not again:
            self.store.end(step.key, "done", found)
            self.results[step.key] = found["result"]

    def _put(self, key: str) -> None:
        """Give what a worker wrote its place."""
        self.folder.artefacts.take(key, self.folder.partial(key))
        self.weights.pop(key, None)

    # What the store says of trials, and what stays on disk

    def _look(self) -> None:
        """See which trials are done or failed, tell the store, and remove weights that nothing needs."""
        running = {step.key for step in self.running.values()}
        still = []
        numbers = {trial.id: number for number, trial in enumerate(self.graph.study.trials)}
        needed: set[str] = set()
        for trial in self.open:
            steps = self.graph.steps(trial, self._result)
            state = self._state(steps, running)
            if state in ("waiting", "running"):
                still.append(trial)
                needed |= {
                    place for step in steps.values() if step.key not in self.results for place in step.reads.values()
                }
            if state == "done":
                self.final[trial.id] = trial, steps
            self._tell(trial, numbers[trial.id], state, steps)
        self.open = still
        self._foretell()
        self._sweep(needed)

    def _state(self, steps: Mapping[str, Step], running: set[str]) -> str:
        keys = {step.key for step in steps.values()}
        if keys & self.failed:
            return "failed"
        if keys <= self.results.keys():
            return "done"
        return "running" if keys & running else "waiting"

    def _tell(self, trial: Trial, number: int, state: str, steps: Mapping[str, Step]) -> None:
        keys = {role: step.key for role, step in steps.items()}
        if self.told.get(trial.id) != (state, keys):
            self.told[trial.id] = state, keys
            self.store.set_trial(trial.id, {"number": number, "settings": trial.settings(), "state": state}, keys)

    def _foretell(self) -> None:
        """How many steps of each kind there will be at most, and how many are done."""
        expected = expected_steps(self.graph, self.results)
        if self.told.get("expected") != expected:
            self.told["expected"] = expected
            self.store.note(expected=expected)
        total = sum(expected.values())
        note = ", ".join(step.kind for step in self.running.values())
        self.progress("study", min(len(self.results), total), total, note=note)

    def _sweep(self, needed: set[str]) -> None:
        """Remove the weights of checkpoints that nothing needs; their small files stay."""
        if self.keep == "all":
            return
        needed = needed | (self._best() if self.keep == "best" else set())
        needed |= {place for step in self.running.values() for place in step.reads.values()}
        for key in self.results.keys() - needed:
            if self._has_weights(key):
                self.folder.artefacts.drop_weights(key)
                self.weights[key] = False

    def _has_weights(self, key: str) -> bool:
        """Looked up once: nobody else writes there."""
        if key not in self.weights:
            self.weights[key] = self.folder.artefacts.has_weights(key)
        return self.weights[key]

    def _best(self) -> set[str]:
        """The last checkpoints of the done trials with the lowest held-out loss, one for each model and drop."""
        found: dict[tuple[str, str | None], tuple[float, str]] = {}
        for trial, steps in self.final.values():
            loss, key = self._loss(steps), (steps.get("heal") or steps["prune"]).key
            best = found.get((trial.model, trial.drop))
            if loss is not None and (best is None or loss < best[0]):
                found[trial.model, trial.drop] = loss, key
        return {key for _, key in found.values()}

    def _loss(self, steps: Mapping[str, Step]) -> float | None:
        """Of a trial's last checkpoint: on the first text it was evaluated on, else on what healing held out."""
        judged = self.results[(steps.get("evaluate_healed") or steps["evaluate_pruned"]).key].get("perplexity")
        if judged:
            return float(next(iter(judged.values()))["loss"])
        return float(self.results[steps["heal"].key]["loss"]["held_out"]) if "heal" in steps else None


def expected_steps(graph: Graph, results: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many steps of each kind a study has at most, from the results there are."""

    def known(step: Step) -> Mapping[str, Any]:
        return results.get(step.key) or foreseen(step)

    steps = {step.key: step.kind for trial in graph.study.trials for step in graph.steps(trial, known).values()}
    return dict(sorted(Counter(steps.values()).items()))
