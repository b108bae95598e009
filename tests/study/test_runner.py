"""A study runs each step once, continues after any kill to the same end, and a failure is of its trials alone."""

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import psutil
import pytest

from shortstack.errors import DataError, DiskFullError, InputError
from shortstack.report import Report
from shortstack.runs.records import read
from shortstack.study import plan_study, run_study, runner, steps
from studies import BOTH, QUICK, SHORT, STUDY, found, inline, make_data, study_text, write_study

pytestmark = pytest.mark.usefixtures("own_cache", "named_data")

TWO_TRIALS = study_text(heal=BOTH)


@contextmanager
def two():
    """Two steps at a time, as far as the study can tell."""
    with inline() as launch:
        yield replace(launch, width=2)


def run(folder, text=STUDY, launcher=inline, **options):
    return run_study(write_study(folder, text), folder / "runs", launcher=launcher, **options)


def weights(runs):
    return sorted(path.parent.name for path in (runs / "artefacts").glob("*/*.safetensors"))


def broken(monkeypatch, kind, run):
    """Put a function in the place of a type of step."""
    monkeypatch.setattr(steps, "STEPS", {**steps.STEPS, kind: run})


def failing(*_args):
    raise InputError("it cannot be done")


def test_every_step_runs_once(tmp_path):
    outcome = run(tmp_path)
    assert (outcome.state, outcome.trials, outcome.failures) == ("finished", {"done": 4}, [])
    before, kinds = found(tmp_path / "runs"), {}
    for kind, *_ in before["steps"].values():
        kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds == {"score": 1, "plan": 2, "prune": 2, "heal": 2, "evaluate": 5}
    assert outcome.ran == outcome.done == outcome.steps == sum(kinds.values())
    assert list((tmp_path / "runs" / "partial").iterdir()) == []
    assert run(tmp_path) == replace(outcome, ran=0)
    assert found(tmp_path / "runs") == before


@pytest.mark.parametrize(("keep", "times"), [("all", 1), ("best", 3)])
def test_the_dry_run_counts_steps_and_bytes(tmp_path, keep, times):
    planned = plan_study(write_study(tmp_path), keep=keep)
    outcome = run(tmp_path, keep=keep)
    assert (planned.trials, sum(planned.steps.values())) == (4, outcome.ran)
    stays = sum(file.stat().st_size for file in (tmp_path / "runs" / "artefacts").glob("*/*.safetensors"))
    assert planned.disk_bytes == pytest.approx(stays * times, rel=0.1), "a step reads one and writes one"


def test_the_dry_run_downloads_no_model(tmp_path):
    planned = plan_study(write_study(tmp_path, SHORT.replace("$TINY/model", "org/nowhere")))
    assert (planned.disk_bytes, planned.steps["evaluate"]) == (None, 2)


def test_a_changed_study_continues_with_what_is_there(tmp_path):
    run(tmp_path, SHORT)
    outcome = run(tmp_path, study_text(more="trials:\n- {metric: bi}\n"))
    assert (outcome.trials, outcome.ran) == ({"done": 2}, 4), "one walk for both metrics, and three steps of bi"
    outcome = run(tmp_path, study_text("reverse"), keep="none")
    assert outcome.trials == {"done": 1}
    assert weights(tmp_path / "runs"), "those of trials of another file stay"
    assert run(tmp_path, SHORT).ran == 0


def test_a_failure_is_of_its_trials_alone(tmp_path, study_data):
    wrong = study_data / "wrong.jsonl"
    wrong.write_text('{"text": "one line"}\n', encoding="utf-8")  # nothing is left to train on
    text = study_text(heal=f"[none, {QUICK}, {QUICK.replace('quick', 'wrong').replace('lines', 'wrong')}]")
    outcome = run(tmp_path, text)
    assert outcome.trials == {"done": 2, "failed": 1}
    (failure,) = outcome.failures
    assert failure["kind"] == "heal"
    assert "Traceback" in failure["error"]
    assert "Traceback" in (tmp_path / "runs" / "logs" / f"{failure['key'][:12]}.txt").read_text()
    states = {
        trial.settings["heal"] and trial.settings["heal"]["name"]: trial.state
        for trial in read(tmp_path / "runs").trials
    }
    assert states == {None: "done", "quick": "done", "wrong": "failed"}
    wrong.write_text((study_data / "lines.jsonl").read_text().replace("one", "two"), encoding="utf-8")
    assert run(tmp_path, text).failed == 0


def test_results_of_changed_inputs_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY", str(make_data(tmp_path)))
    run(tmp_path)
    assert all(trial.step("evaluate_base") for trial in read(tmp_path / "runs").trials)
    (tmp_path / "text.txt").write_text("another text, and much too short", encoding="utf-8")
    assert run(tmp_path).failed == 4
    for trial in read(tmp_path / "runs").trials:
        assert trial.state == "failed"
        assert {role for role, step in trial.steps.items() if step.state == "done"} <= {"plan", "prune", "heal"}
    assert not [table for table in Report.of(tmp_path / "runs").tables if table.key == "metrics"]


@pytest.mark.parametrize("keep", ["none", "best"])
def test_keep_removes_weights_that_no_step_needs(tmp_path, keep):
    run(tmp_path, keep=keep)
    losses = {}
    for trial in read(tmp_path / "runs").trials:
        (text,) = trial.result("evaluate_healed", "evaluate_pruned")["perplexity"].values()
        losses[trial.step("heal", "prune").key] = text["loss"]
    assert weights(tmp_path / "runs") == ([min(losses, key=losses.get)] if keep == "best" else [])
    assert len(list((tmp_path / "runs" / "artefacts").glob("*/config.json"))) == 4


@pytest.mark.parametrize("heal", [BOTH, QUICK])
def test_removed_weights_are_made_again(tmp_path, monkeypatch, heal):
    """The evaluation text changes: it needs healed weights, which need those of the cut, and both were removed."""
    monkeypatch.setenv("TINY", str(make_data(tmp_path)))
    text = study_text(heal=heal, more="evaluate_pruned: false\n").replace("[$TINY/text.txt]", "[$TINY/judged.txt]")
    for words in ("a walk that visits every layer ", "the dog lies in order by the door "):
        (tmp_path / "judged.txt").write_text(words * 40, encoding="utf-8")
        assert run(tmp_path, text, keep="none").failed == 0
    assert weights(tmp_path / "runs") == []


@pytest.mark.parametrize("verb", ["prune", "heal"])
def test_a_failed_evaluation_keeps_the_weights_for_the_next_run(tmp_path, monkeypatch, verb):
    def evaluate(job, progress):
        made_by = job.open(progress).record.get("verb")
        return failing() if made_by == verb else original(job, progress)

    original = steps.STEPS["evaluate"]
    with monkeypatch.context() as patch:
        broken(patch, "evaluate", evaluate)
        assert run(tmp_path, TWO_TRIALS, two, keep="none").failed
    broken(monkeypatch, "heal", lambda *_: pytest.fail("healed again"))
    assert run(tmp_path, TWO_TRIALS, two, keep="none").failed == 0


def test_a_full_disk_ends_the_study_and_the_same_call_continues(tmp_path, monkeypatch):
    tried = []

    def full(job, _progress):
        tried.append(job.key)
        raise OSError(28, "No space left on device", str(job.output))

    with monkeypatch.context() as patch:
        broken(patch, "prune", full)
        with pytest.raises(DiskFullError):
            run(tmp_path)
    assert len(tried) == 1
    assert run(tmp_path).failed == 0


def test_a_profile_runs_alone(tmp_path, monkeypatch):
    together, start = [], runner._StudyRun._start

    def noted(study_run, step):
        start(study_run, step)
        together.append(sorted(running.kind for running in study_run.running.values()))

    monkeypatch.setattr(runner._StudyRun, "_start", noted)
    text = study_text("[reverse, ppl]", more="profile: {batch_size: 1, prompt: 4, new_tokens: 2}\n")
    assert run(tmp_path, text, two).failed == 0
    assert [kinds for kinds in together if "profile" in kinds] == [["profile"]] * 2
    assert any(len(kinds) == 2 for kinds in together)


def test_rounds_record_what_they_removed(tmp_path):
    assert run(tmp_path, study_text("reverse", QUICK.replace("{", "{layers_per_round: 1, "))).failed == 0
    (result,) = (result for kind, *_, result in found(tmp_path / "runs")["steps"].values() if kind == "rounds")
    assert result["plan"]["removed"] == [4, 5]


WRONG = [
    ("{source: $TINY/text.txt", "{source: pydocc"),
    ("[$TINY/text.txt]", "[nowhere.txt]"),
    ("drop: 2", "drop: 6"),
    ("train_last: 1", "train_last: 5"),
    ("num_samples: 2", "num_samples: 2, tasks: [piqa], data_dir: nowhere"),
    ("num_samples: 2", "num_samples: 2, tasks: [piqaa], include: $TINY"),
    ("$TINY/model", "$UNSET_NAME/model"),
    ("title: tiny", "device: mps"),
]


@pytest.mark.parametrize(("old", "new"), WRONG, ids=[new for _, new in WRONG])
def test_what_no_step_could_use_is_refused_before_the_first(tmp_path, monkeypatch, old, new):
    harness = pytest.importorskip("shortstack.evaluation.harness")
    without_stock = partial(harness.TaskManager, include_defaults=False)  # reading all that it ships takes seconds
    monkeypatch.setattr(
        harness, "TaskManager", lambda include_path, include_defaults: without_stock(include_path=include_path)
    )
    monkeypatch.setattr(runner, "perform", lambda _job: pytest.fail("a step runs"))
    assert old in STUDY
    with pytest.raises((InputError, DataError)):
        run(tmp_path, STUDY.replace(old, new))


def test_a_killed_study_takes_its_workers_along_and_continues(tmp_path):
    study, runs = write_study(tmp_path, SHORT), tmp_path / "killed"
    words = [sys.executable, "-m", "shortstack", "study", str(study), "-o", str(runs), "--workers", "2", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not list((runs / "partial").glob("*.lock")):  # no worker writes yet
            assert process.poll() is None
            threading.Event().wait(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert run_study(study, runs, workers=2).failed == 0
    run_study(study, tmp_path / "runs", launcher=inline)
    assert found(runs) == found(tmp_path / "runs")
