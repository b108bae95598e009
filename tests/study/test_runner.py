"""A study runs each step once, goes on after any kill with the same end, and one failure is one trial's."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

import command as command_line
from command import invoke
from shortstack.checkpoint import Checkpoint
from shortstack.errors import DataError, DiskFullError, InputError
from shortstack.report import Report
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.records import read
from shortstack.study import run_study, runner
from shortstack.study.progress import study_progress
from shortstack.study.step_counts import step_counts
from shortstack.study.step_types import EvaluateStep, HealStep, PruneStep
from shortstack.study.workers import local
from studies import QUICK, SHORT, STUDY, found, inline, make_data, write_study

pytestmark = pytest.mark.usefixtures("own_cache", "named_data")

ONE_METRIC = STUDY.replace("[reverse, ppl]", "[ppl]")


def run(folder, text=STUDY, **options):
    return run_study(write_study(folder, text), folder / "runs", launcher=inline, **options)


def weights(runs):
    return sorted(path.parent.name for path in (runs / "artefacts").glob("*/*.safetensors"))


def test_every_trial_ends_and_every_step_runs_once(tmp_path):
    outcome = run(tmp_path)
    told = outcome.to_dict()
    assert (told["trials"], told["done"], told["failed"], told["skipped"], told["failures"]) == (4, 4, 0, 0, [])
    kinds = {}
    for _, kind, *_ in found(tmp_path / "runs")["steps"].values():
        kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds == {"score": 1, "plan": 2, "prune": 2, "heal": 2, "evaluate": 5}
    assert outcome.steps == sum(kinds.values())
    assert not list((tmp_path / "runs" / "partial").iterdir())
    before = found(tmp_path / "runs")
    again = run(tmp_path)
    assert (again.steps, again.skipped) == (0, outcome.steps), "what is done is not run again"
    assert found(tmp_path / "runs") == before
    assert [path.name for path in (tmp_path / "runs").glob("runs.sqlite*")] == ["runs.sqlite"], "a store is one file"


def test_trials_can_be_added_and_take_over_what_is_there(tmp_path):
    first = run(tmp_path, SHORT)
    more = SHORT + "trials:\n- {metric: bi}\n"
    outcome = run(tmp_path, more)
    assert (outcome.trials, outcome.done) == (2, 2)
    assert outcome.skipped >= first.steps - 1  # bi joins the walk, so there is another score step
    assert outcome.steps <= 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("drop: 2", "drop: 3", r'the trial .*ppl.*"drop": "2".*found none'),
        ("samples: 2, ", "samples: 3, ", "evaluation.samples: 2"),
    ],
)
def test_another_study_on_the_same_folder_is_refused_and_the_difference_named(tmp_path, old, new, said):
    run(tmp_path, SHORT)
    before = found(tmp_path / "runs")
    head, _, tail = SHORT.rpartition(old)
    with pytest.raises(InputError, match=said):
        run(tmp_path, head + new + tail)
    assert found(tmp_path / "runs") == before


def test_a_failure_is_recorded_and_the_other_trials_go_on(tmp_path, study_data):
    (study_data / "wrong.jsonl").write_text('{"text": "one line"}\n', encoding="utf-8")  # nothing is left to train
    wrong = QUICK.replace("quick", "wrong").replace("lines", "wrong")
    text = ONE_METRIC.replace(f"[none, {QUICK}]", f"[none, {QUICK}, {wrong}]")
    outcome = run(tmp_path, text)
    assert (outcome.trials, outcome.done, outcome.failed) == (3, 2, 1)
    assert {failure["kind"] for failure in outcome.failures} == {"heal"}
    assert all("held out" in failure["error"] and "Traceback" in failure["error"] for failure in outcome.failures)
    states = {(row[0]["heal"] or {}).get("name"): row[1] for row in found(tmp_path / "runs")["trials"].values()}
    assert states == {None: "done", "quick": "done", "wrong": "failed"}
    (study_data / "wrong.jsonl").write_text(
        (study_data / "lines.jsonl").read_text().replace("one", "two"), encoding="utf-8"
    )
    repaired = run(tmp_path, text)
    assert (repaired.done, repaired.failed, repaired.failures) == (3, 0, [])


def test_what_was_found_with_other_inputs_is_not_shown_as_this_trial_s(tmp_path, monkeypatch):
    """The text changes, and evaluating on the new one fails: nothing of the old one stands beside the failure."""
    monkeypatch.setenv("TINY", str(make_data(tmp_path)))
    run(tmp_path)
    assert all(trial.step("evaluate_base") for trial in read(tmp_path / "runs").trials)
    (tmp_path / "text.txt").write_text("another text, and much too short", encoding="utf-8")
    seen = []
    outcome = run(tmp_path, progress=lambda stage, done, _total, /, *, note="": seen.append((stage, done)))
    assert (outcome.done, outcome.failed) == (0, 4)
    assert ("study", 3) in seen, "what the changed text has no part in"
    assert {done for stage, done in seen if stage == "study"} == {3}, "what was done with the old text does not count"
    assert [trial.state for trial in read(tmp_path / "runs").trials] == ["failed"] * 4
    for trial in read(tmp_path / "runs").trials:
        assert {role for role, step in trial.steps.items() if step.state == "done"} <= {"plan", "prune", "heal"}
    counted = study_progress(tmp_path / "runs").kinds
    assert {kind: each.done for kind, each in counted.items() if each.done} == {"plan": 1, "prune": 1, "heal": 1}
    assert not [each for each in Report.of(tmp_path / "runs").tables if each.key == "metrics"]


@pytest.mark.parametrize("keep", ["none", "best"])
def test_weights_that_nothing_needs_are_removed(tmp_path, keep):
    run(tmp_path, keep=keep)
    data = found(tmp_path / "runs")
    kept = weights(tmp_path / "runs")
    assert len(kept) == {"none": 0, "best": 1}[keep]
    if keep == "best":
        last = {roles.get("heal", roles["prune"]): roles.get("evaluate_healed", roles.get("evaluate_pruned"))
                for roles in data["roles"].values()}  # fmt: skip
        losses = {key: next(iter(data["steps"][step][-1]["perplexity"].values()))["loss"] for key, step in last.items()}
        assert kept == [min(losses, key=lambda key: losses[key])]
    assert all((tmp_path / "runs" / "artefacts" / key / "config.json").exists() for key in
               (key for key, row in data["steps"].items() if row[1] in ("prune", "heal")))  # fmt: skip


def test_what_killed_workers_left_goes(tmp_path):
    partial = tmp_path / "runs" / "partial"
    key = "0" * 64
    for name in (key, f"{key}.partial-12345678", f"{key}.training", f"{key}.inputs"):
        (partial / name).mkdir(parents=True)
        (partial / name / "file").write_text("left")
    (partial / f"{key}.progress.json").write_text("{}")
    folder = Folder(tmp_path / "runs")
    folder.clear_partial()
    assert [path.name for path in partial.iterdir()] == [f"{key}.training"], "a healing goes on from there"
    run(tmp_path, SHORT)
    assert list(partial.iterdir()) == [], "no step of this study has that state"


@contextmanager
def evaluation_failing_of(verb, monkeypatch):
    """What this verb made cannot be evaluated, while it lasts."""
    original = EvaluateStep.run

    def failing(step, job, progress):
        if job.open("checkpoint", progress).record.get("verb") == verb:
            raise InputError("none", expected="room", fix="free some", where="the disk")
        return original(step, job, progress)

    with monkeypatch.context() as broken:
        broken.setattr(EvaluateStep, "run", failing)
        yield


def test_a_failed_evaluation_does_not_cost_the_healed_weights(tmp_path, monkeypatch):
    with evaluation_failing_of("heal", monkeypatch):
        assert run(tmp_path, ONE_METRIC, keep="none").failed
    monkeypatch.setattr(HealStep, "run", lambda *_args: pytest.fail("healed again"))
    outcome = run(tmp_path, ONE_METRIC, keep="none")
    assert (outcome.done, outcome.failed) == (2, 0)


def test_a_failed_evaluation_of_the_cut_does_not_cost_the_healing_beside_it(tmp_path, monkeypatch):
    @contextmanager
    def two():
        with inline() as launch:
            yield replace(launch, width=2)

    study = write_study(tmp_path, ONE_METRIC)
    with evaluation_failing_of("prune", monkeypatch):
        assert run_study(study, tmp_path / "runs", launcher=two, keep="none").failed
    monkeypatch.setattr(HealStep, "run", lambda *_args: pytest.fail("healed again"))
    assert run_study(study, tmp_path / "runs", launcher=two, keep="none").failed == 0


def test_a_worker_is_told_where_to_write_wherever_it_runs(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(runner, "perform", lambda job, _perform=runner.perform: jobs.append(job) or _perform(job))
    study = write_study(tmp_path, SHORT)
    monkeypatch.chdir(tmp_path)
    run_study(study, "runs", launcher=inline)
    assert all(place.is_absolute() for job in jobs for place in (job.output, job.log, job.progress))


def test_a_full_disk_ends_the_study_once_and_the_same_call_goes_on(tmp_path, monkeypatch):
    tried = []

    def full(step, job, progress):
        tried.append(step.key)
        raise OSError(28, "No space left on device", str(job.output))

    with monkeypatch.context() as broken:
        broken.setattr(PruneStep, "run", full)
        with pytest.raises(DiskFullError, match="room to write, found No space left"):
            run(tmp_path, ONE_METRIC)
    assert len(tried) == 1, "what else is begun would fail, too"
    assert run(tmp_path, ONE_METRIC).done == 2


def test_what_is_timed_runs_alone(tmp_path, monkeypatch):
    beside, start = [], runner._StudyRun._start

    def noted(study_run, step):
        beside.append(sorted([step.kind, *(each.kind for each in study_run.running.values())]))
        start(study_run, step)

    @contextmanager
    def two():
        with inline() as launch:
            yield replace(launch, width=2)

    monkeypatch.setattr(runner._StudyRun, "_start", noted)
    profiled = "collapse_check: false, profile: {batch_size: [1], prompt: 4, new_tokens: 2}"
    text = STUDY.replace("collapse_check: false", profiled).replace(f"[none, {QUICK}]", "none")
    outcome = run_study(write_study(tmp_path, text), tmp_path / "runs", launcher=two)
    assert (outcome.done, outcome.failed) == (2, 0)
    assert [kinds for kinds in beside if "profile" in kinds] == [["profile"]] * 2
    assert [kinds for kinds in beside if len(kinds) == 2], "others run two at a time"


def test_weights_of_which_no_loss_is_known_stay(tmp_path):
    text = SHORT.replace("perplexity: [$TINY/text.txt]", "perplexity: [], probes: true, probe_items: 2")
    assert run(tmp_path, text=text).done == 1
    assert len(weights(tmp_path / "runs")) == 1


def test_in_turns_the_paper_schedule_runs_and_says_what_went(tmp_path):
    text = f"{SHORT}trials:\n- {{metric: reverse, strategy: step 1, heal: {QUICK}}}\n"
    outcome = run(tmp_path, text, keep="all")
    assert outcome.failed == 0
    data = found(tmp_path / "runs")
    (turns,) = (row[-1] for row in data["steps"].values() if row[1] == "turns")
    assert turns["plan"]["removed"] == [4, 5]
    assert turns["steps"] > 0


PROFILED = "collapse_check: false, profile: {batch_size: %s}"
WRONG = [
    ("calibration: {source: $TINY/text.txt", "calibration: {source: pydocc", ""),
    ("[$TINY/text.txt]", "[\n  pydocc]", "study.yaml, line 9: pydocc: expected"),
    ("[$TINY/text.txt]", "[nowhere.txt]", r"nowhere\.txt"),
    ("[$TINY/text.txt]", "[mix]", ""),
    ("[$TINY/text.txt]", "['$TINY/text.txt,pydoc']", ""),
    ("[$TINY/text.txt]", "[self]", ""),
    ("[$TINY/text.txt], length: 16, samples: 2", "[copying]", "samples: expected a number of windows, found copying"),
    ("data: $TINY/lines.jsonl", "data: [pydoc, slef]", ""),
    ("data: $TINY/lines.jsonl", "data: $TINY/model/config.json", ""),
    ("metrics: [reverse, ppl]", "metrics: [layers 8-9]", ""),
    ("drop: 2", "drop: 6", r"study.yaml, line 6: .*/model: drop: expected"),
    ("drop: 2", "drop: 2\nstrategy: step 3", ""),
    ("train_last: 1", "train_last: 5", ""),
    ("collapse_check: false", "tasks: [piqa],\n  data_dir: nowhere", "study.yaml, line 9: data_dir: expected a folder"),
    ("collapse_check: false", "tasks: [piqaa], include: $TINY", r"study\.yaml, line 8: tasks: .* did you mean piqa\?$"),
    ("collapse_check: false", "\n  limit: 3", r"study.yaml, line 9: limit: expected tasks beside it.* add tasks, such"),
    ("collapse_check: false", "include: $TINY", ""),
    ("collapse_check: false", "max_length: 64", "max_length: expected tasks beside it"),
    ("collapse_check: false", PROFILED % "[]", ""),
    ("$TINY/model", "nowhere", "nowhere"),
    ("$TINY/model", "$UNSET_NAME/model", "UNSET_NAME"),
    ("title: tiny", "compute:\n  device: mps", "study.yaml, line 3: device: expected one of cpu"),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=[new for _, new, _ in WRONG])
def test_what_would_fail_in_a_step_is_refused_before_the_first(tmp_path, monkeypatch, old, new, said):
    harness = pytest.importorskip("shortstack.evaluation.harness")
    without_stock = partial(harness.TaskManager, include_defaults=False)  # reading all that it ships takes seconds
    monkeypatch.setattr(
        harness, "TaskManager", lambda include_path, include_defaults: without_stock(include_path=include_path)
    )
    assert old in STUDY
    with pytest.raises((InputError, DataError), match=said) as refused:
        run(tmp_path, STUDY.replace(old, new))
    assert not refused.value.option or not said.startswith("study")
    if (tmp_path / "runs").exists():
        with Store.open(Folder(tmp_path / "runs"), read_only=True) as store:
            assert store.steps() == []
    if "device" not in new:  # it may run elsewhere
        with pytest.raises((InputError, DataError), match=said):
            step_counts(tmp_path / "study.yaml")


@pytest.mark.parametrize("heal", [f"[none, {QUICK}]", QUICK])
def test_weights_that_are_gone_are_made_again_from_the_first_that_is(tmp_path, monkeypatch, heal):
    """The text to judge on changes: it needs healed weights, which need those of the cut, and both were removed."""
    monkeypatch.setenv("TINY", str(make_data(tmp_path)))
    text = ONE_METRIC.replace("perplexity: [$TINY/text.txt]", "pruned: false, perplexity: [$TINY/judged.txt]")
    text = text.replace(f"[none, {QUICK}]", heal)
    judged = tmp_path / "judged.txt"
    for words in ("a walk that visits every layer ", "the dog lies in order by the door "):
        judged.write_text(words * 40, encoding="utf-8")
        outcome = run(tmp_path, text, keep="none")
        assert (outcome.done, outcome.failures) == (outcome.trials, [])
    assert weights(tmp_path / "runs") == []


def test_a_recipe_that_changed_makes_another_study(tmp_path, monkeypatch):
    """Its options are part of a trial and of its steps' keys; the file's name is not."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "heal: {method: partial, train_last: 1, num_train_epochs: 1, per_device_train_batch_size: 4}\n",
        encoding="utf-8",
    )
    text = ONE_METRIC.replace(
        f"[none, {QUICK}]", f"{{name: mine, recipe: {recipe}, data: $TINY/lines.jsonl, max_length: 32}}"
    )
    run(tmp_path, text)
    before = found(tmp_path / "runs")
    recipe.write_text(recipe.read_text().replace("last: 1", "last: 2"), encoding="utf-8")
    with pytest.raises(InputError, match=r'"train_last": 1.*found none'):
        run(tmp_path, text)
    assert found(tmp_path / "runs") == before
    renamed = recipe.rename(tmp_path / "yours.yaml")
    renamed.write_text(renamed.read_text().replace("last: 2", "last: 1"), encoding="utf-8")
    assert run(tmp_path, text.replace(str(recipe), str(renamed))).steps == 0


def test_the_command_of_every_step_can_be_typed(tmp_path):
    turns = "{metric: ppl, strategy: step 1, heal: quick, repair: false}"
    more = f"- {{metric: search}}\n- {{metric: ppl block, drop: 3}}\n- {turns}\n"
    text = ONE_METRIC.replace("samples: 2, length", "samples: 4, length")
    text = text.replace("collapse_check: false", "probes: true, probe_items: 2")
    run(tmp_path, f"{text}repair: {{source: $TINY/text.txt, samples: 8, length: 16}}\ntrials:\n{more}")
    with Store.open(Folder(tmp_path / "runs"), read_only=True) as store:
        told = [row[0] for row in store.connection.execute("SELECT command FROM steps")]
    assert {command.split()[1] for command in told} == {"score", "plan", "prune", "heal", "evaluate"}
    (turns,) = (command for command in told if "--step" in command and " heal " in f" {command}")
    assert re.search(r"--calibration-data \S*text\.txt\S* --num-samples 4 --seq-length 16", turns), turns
    for command in told:
        command_line.read(*shlex.split(command)[1:])  # raises for an option that is none


def test_the_commands_of_a_study_in_an_odd_folder_give_what_its_steps_gave(tmp_path, monkeypatch):
    """Each command is run as a shell reads it, and what it says is compared with the step's result."""
    odd = tmp_path / """it's @ "1,000" = $5 (a;b)"""
    odd.mkdir()
    monkeypatch.setenv("TINY", str(make_data(odd)))
    repaired = "repair: {source: $TINY/text.txt, samples: 8, length: 16}\n"
    assert run(odd, ONE_METRIC + repaired, keep="all").failed == 0
    with Store.open(Folder(odd / "runs"), read_only=True) as store:
        steps = store.steps()
    monkeypatch.chdir(tmp_path)
    for step in steps:
        _, *words = shlex.split(step["command"])
        place = Path(words[words.index("-o") + 1]) if "-o" in words else None
        done = invoke(*words, "--json")
        assert done.exit_code == 0, f"{step['command']}\n{done.output}"
        told = json.loads(done.stdout)
        if place and place.is_dir():
            assert Checkpoint.open(place).weights_sha256 == step["result"]["weights_sha256"]
            shutil.rmtree(place)
        elif step["kind"] in ("score", "plan"):
            told, kept = (each.get("scores") or each["removed"] for each in (told, step["result"]))
            assert told == kept
        else:
            losses = [[each["loss"] for each in result["perplexity"].values()] for result in (told, step["result"])]
            assert losses[0] == losses[1]


def test_a_file_is_no_folder_for_a_study(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(InputError, match="a folder for a study, found a file"):
        run(tmp_path)
    for place, said in ((tmp_path / "runs", "found a file"), (tmp_path, "folder of a study")):
        with pytest.raises(DataError, match=said):
            study_progress(place)
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_killed_command_takes_its_workers_along_and_goes_on_to_what_one_process_gives(tmp_path):
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
    assert run_study(study, runs, launcher=partial(local, 2)).failed == 0
    run_study(study, tmp_path / "runs", launcher=inline)
    assert found(runs) == found(tmp_path / "runs")
