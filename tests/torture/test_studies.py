"""A study whose workers are lost and whose driver is killed: what is done is whole, and the end is that of a calm one."""

from __future__ import annotations

import json
import os
import pkgutil
import random
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.pruning import verify
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.study import run_study
from shortstack.study.workers import Launch
from studies import found, inline, write_study

ROUNDS = max(3, int(os.environ.get("TORTURE_TRIALS", "0")) // 20)
STUDY = """
models: [$TINY/model]
metrics: [reverse, random]
seeds: [0, 1]
drop: [1, 2]
evaluation: {perplexity: [$TINY/text.txt], seq_length: 16, num_samples: 2}
"""
CALLS = (  # by which the driver takes a result in
    "shortstack.runs.folder:shutil.rmtree",
    "shortstack.runs.folder:rename_new",
    "shortstack.runs.store:Store.end",
    "shortstack.study.runner:_StudyRun._update",
)


class Killed(BaseException):
    """As SIGKILL: nothing that catches errors hears it."""


class Workers:
    """Three, of which one at a time ends when the driver looks, in any order; some die, half of their output written."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.given: list[tuple[Future[Any], Any, Any]] = []

    @contextmanager
    def launch(self) -> Iterator[Launch]:
        yield Launch(3, self.submit)

    def submit(self, function: Any, argument: Any, _needs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.given.append((future, function, argument))
        return future

    def look(self, _stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
        if not self.given:
            return
        future, function, argument = self.given.pop(self.rng.randrange(len(self.given)))
        if self.rng.random() > 0.1:
            future.set_result(function(argument))
            return
        argument.output.mkdir(parents=True, exist_ok=True)
        (argument.output / "model.safetensors").write_bytes(b"half")
        future.set_exception(BrokenProcessPool("it died"))


@contextmanager
def killed(rng: random.Random) -> Iterator[None]:
    """The driver dies at one of the calls, soon or late."""
    name, left = rng.choice(CALLS), rng.randint(0, 12)
    original = pkgutil.resolve_name(name)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return original(*args, **kwargs)

    with suppress(Killed), mock.patch(name.replace(":", "."), call):
        yield


def check_whole(runs: Path) -> int:
    """Check that each step marked as done is whole; return the number of steps that are."""
    with Store.open(Folder(runs), read_only=True) as store:
        results = store.results()
        assert store.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    for key, result in results.items():
        place = runs / "artefacts" / key
        assert place.is_dir(), f"{key} is done, and nothing lies there"
        if (place / "config.json").exists():
            checkpoint = Checkpoint.open(place)
            assert verify(checkpoint).ok
            assert checkpoint.weights_sha256 == result["weights_sha256"]
        else:
            (file,) = place.glob("*.json")
            assert json.loads(file.read_text()) == result
    return len(results)


@pytest.mark.usefixtures("named_data")
def test_a_study_that_is_killed_anywhere_ends_as_one_to_which_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortstack.study.runner.PACE", 0.0)
    study = write_study(tmp_path, STUDY)
    run_study(study, tmp_path / "whole", launcher=inline, keep="all")
    expected = found(tmp_path / "whole")
    for seed in range(ROUNDS):
        rng, runs, done = random.Random(seed), tmp_path / str(seed), 0
        for _ in range(rng.randint(2, 8)):
            workers = Workers(rng)
            with killed(rng):
                run_study(study, runs, launcher=workers.launch, keep="all", progress=workers.look)
            before, done = done, check_whole(runs)
            assert done >= before, "what was done is lost"
        assert run_study(study, runs, launcher=inline, keep="all").failed == 0
        assert found(runs) == expected
        assert not list((runs / "partial").iterdir())
