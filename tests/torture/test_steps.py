"""A study's steps begun, ended, killed and gone on with in any order: a step marked as done has a whole artefact."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shortstack.checkpoint import Checkpoint
from shortstack.machine.progress import silent
from shortstack.pruning import verify
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.study import run_study
from shortstack.study.graph import Graph, sources
from shortstack.study.grid import read_study
from shortstack.study.references import text_digest
from shortstack.study.runner import _models, _StudyRun
from shortstack.study.workers import Launch
from studies import Killed, found, inline
from zoo import speaking

EXAMPLES = max(5, int(os.environ.get("TORTURE_TRIALS", "40")) // 20)
STUDY = """
models: [{model}]
metrics: [reverse, random]
seeds: [0, 1]
drop: [1, 2]
evaluation: {{perplexity: [{text}], length: 16, samples: 2, collapse_check: false}}
"""
CALLS = (  # by which the driver takes a result in
    "shortstack.runs.artefacts.shutil.rmtree",
    "shortstack.runs.artefacts.rename_new",
    "shortstack.runs.store.Store.end",
    "shortstack.study.runner._StudyRun._update",
)


@cache
def prepared() -> tuple[Path, dict[str, Any]]:
    """A folder with a model and its study, and what the study gives where nothing happens to it."""
    folder = Path(tempfile.mkdtemp())
    speaking(folder / "m", num_hidden_layers=4, hidden_size=16, intermediate_size=16, num_key_value_heads=4)
    (folder / "text.txt").write_text("the walk visits every layer once and in order " * 40)
    (folder / "study.yaml").write_text(STUDY.format(model=folder / "m", text=folder / "text.txt"))
    run_study(folder / "study.yaml", folder / "runs", launcher=inline, keep="all")
    return folder, found(folder / "runs")


class Steps(RuleBasedStateMachine):
    """The driver of a study, its workers in this machine's hands."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.expected = prepared()
        self.root = Path(tempfile.mkdtemp())
        self.runs = self.root / "0"
        self.number = 0
        self.waiting: dict[Future[Any], tuple[Any, Any]] = {}
        self.run: _StudyRun | None = None
        self.reopen()

    # What may happen

    @precondition(lambda self: self.run is None)
    @rule()
    def reopen(self) -> None:
        """As run_study() begins."""
        self.open = ExitStack()
        folder, study = Folder(self.runs), read_study(self.source / "study.yaml")
        self.open.enter_context(folder.held())
        store = self.open.enter_context(Store.open(folder))
        graph = Graph(study, _models(study, silent), {each: text_digest(each) for each in sources(study)})
        shutil.copy(self.source / "study.yaml", folder.study)
        store.forget_running()
        folder.clear_partial()
        self.waiting = {}
        self.run = _StudyRun(graph, folder, store, Launch(3, self.submit), "all", silent)
        self.run._update()

    def submit(self, function: Any, argument: Any, _needs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting[future] = function, argument
        return future

    @precondition(lambda self: self.run)
    @rule()
    def begin(self) -> None:
        self.run._hand_over()

    @precondition(lambda self: self.run and self.waiting)
    @rule(which=st.integers(0, 2))
    def work(self, which: int) -> None:
        """A worker does what it was given; nobody has seen its result yet."""
        future = list(self.waiting)[which % len(self.waiting)]
        if not future.done():
            function, argument = self.waiting[future]
            future.set_result(function(argument))

    @precondition(lambda self: self.run and self.waiting)
    @rule(which=st.integers(0, 2))
    def lose_a_worker(self, which: int) -> None:
        """A worker dies, half of its output written."""
        future = list(self.waiting)[which % len(self.waiting)]
        if not future.done():
            _, argument = self.waiting[future]
            argument.output.mkdir(parents=True, exist_ok=True)
            (argument.output / "model.safetensors").write_bytes(b"half")
            future.set_exception(BrokenProcessPool("it died"))

    @precondition(lambda self: self.run and any(future.done() for future in self.waiting))
    @rule(dies=st.sampled_from(("", *CALLS)))
    def end(self, dies: str) -> None:
        """The driver takes a result in, or dies at one of the calls by which it does."""
        try:
            with mock.patch(dies, side_effect=Killed) if dies else nullcontext():
                self.take_in()
        except Killed:
            self.kill()

    @precondition(lambda self: self.run)
    @rule()
    def kill(self) -> None:
        """What was on the disk at that moment is what is found: the folder is copied, and the process forgotten."""
        self.number += 1
        image = self.root / str(self.number)
        shutil.copytree(self.runs, image, ignore=shutil.ignore_patterns("lock"))
        self.close()
        shutil.rmtree(self.runs)
        self.runs = image

    @precondition(lambda self: self.run and not self.waiting)
    @rule()
    def stop(self) -> None:
        """As run_study() ends."""
        self.close()

    # Its parts

    def take_in(self) -> None:
        future = next(future for future in self.waiting if future.done())
        del self.waiting[future]
        self.run._finish(self.run.running.pop(future), future)
        self.run._update()

    def close(self) -> None:
        self.run = None
        self.open.close()

    # What must hold

    @invariant()
    def what_is_done_is_whole(self) -> None:
        if not (self.runs / "runs.sqlite").exists():
            return
        with Store.open(Folder(self.runs), read_only=True) as store:
            results = store.results()
            assert store.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        for key, result in results.items():
            place = self.runs / "artefacts" / key
            assert place.is_dir(), f"{key} is done, and nothing lies there"
            if (place / "config.json").exists():
                checkpoint = Checkpoint.open(place)
                assert verify(checkpoint).ok
                assert checkpoint.weights_sha256 == result["weights_sha256"]
            else:
                (file,) = place.glob("*.json")
                assert json.loads(file.read_text()) == result

    def teardown(self) -> None:
        """Whatever has happened, the study ends as one to which nothing did."""
        if self.run:
            self.kill()
        outcome = run_study(self.source / "study.yaml", self.runs, launcher=inline, keep="all")
        assert outcome.failed == 0, outcome.failures
        assert found(self.runs) == self.expected
        assert not list((self.runs / "partial").iterdir())
        shutil.rmtree(self.root)


Steps.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestSteps = Steps.TestCase
