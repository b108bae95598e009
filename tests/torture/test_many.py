"""A study of very many cheap trials, some of which fail, killed again and again: store, report and counts are exact."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from shortstack.errors import InputError
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.records import read
from shortstack.study import run_study
from shortstack.study.runner import _StudyRun
from shortstack.study.step_types import PlanStep
from studies import Killed, inline
from zoo import speaking

TRIALS = int(os.environ.get("TORTURE_TRIALS", "20"))
KILLS = max(3, TRIALS // 50)
STUDY = """
title: many
models: [{model}]
metrics: [random]
drop: 2
seeds: {seeds}
evaluation: {{perplexity: [{text}], length: 16, samples: 2, collapse_check: false}}
"""


def test_counts_are_exact_whatever_fails_and_however_often_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    rng = random.Random(0)
    speaking(tmp_path / "m", num_hidden_layers=6, hidden_size=16, intermediate_size=16, num_key_value_heads=4)
    (tmp_path / "text.txt").write_text("the walk visits every layer once and in order " * 40)
    study, runs = tmp_path / "study.yaml", tmp_path / "runs"
    study.write_text(STUDY.format(model=tmp_path / "m", seeds=[*range(TRIALS)], text=tmp_path / "text.txt"))
    failing = set(rng.sample(range(TRIALS), TRIALS // 5))
    original, finish = PlanStep.run, _StudyRun._finish
    left = {"kills": KILLS, "steps": rng.randint(1, 2 * TRIALS // KILLS)}

    def planned(step: PlanStep, job: Any, progress: Any) -> Any:
        if step.arguments["seed"] in failing:
            raise InputError("none", expected="luck", fix="another seed", where="a trial")
        return original(step, job, progress)

    def killed(run: _StudyRun, *step: Any) -> None:
        left["steps"] -= 1
        if left["kills"] and left["steps"] < 0:
            left["kills"] -= 1
            left["steps"] = rng.randint(1, 2 * TRIALS // KILLS)
            raise Killed
        finish(run, *step)

    monkeypatch.setattr(PlanStep, "run", planned)
    monkeypatch.setattr(_StudyRun, "_finish", killed)
    for _ in range(KILLS):
        with pytest.raises(Killed):
            run_study(study, runs, launcher=inline)
    outcome = run_study(study, runs, launcher=inline)
    assert (outcome.trials, outcome.done, outcome.failed) == (TRIALS, TRIALS - len(failing), len(failing))
    with Store.open(Folder(runs), read_only=True) as store:
        states = {trial["settings"]["seed"]: trial["state"] for trial in store.trials()}
        assert store.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        done = {key for key, kind in store.connection.execute("SELECT key, kind FROM steps WHERE state = 'done'")}
    assert states == {seed: "failed" if seed in failing else "done" for seed in range(TRIALS)}
    assert len(outcome.failures) == len(failing)
    assert {path.name for path in (runs / "artefacts").iterdir()} == done
    assert not list((runs / "partial").iterdir())
    assert sum(trial.state == "failed" for trial in read(runs).trials) == len(failing)
    monkeypatch.setattr(PlanStep, "run", original)
    again = run_study(study, runs, launcher=inline)
    assert (again.done, again.failed) == (TRIALS, 0), "what failed is tried again, and nothing else"
    assert again.steps <= 4 * len(failing)
