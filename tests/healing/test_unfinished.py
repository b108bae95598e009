"""A healing that is stopped or killed goes on where it was, and only if it is asked for the same."""

import os
import signal
import sys

import pytest

from command import invoke
from forks import in_child
from learning import weights
from shortstack.checkpoint import Checkpoint
from shortstack.cli import main
from shortstack.errors import CheckpointError, InputError, OutputError
from shortstack.healing import HealingTask, Objective, Partial, Schedule, TrainingData, heal, training
from shortstack.machine import files
from zoo import tiny

pytestmark = pytest.mark.usefixtures("own_cache")
SCHEDULE = {"num_train_epochs": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 8}


def healed(source, out, *, schedule=SCHEDULE, samples=48, method=None, resume=None, progress=None, **more):
    data = TrainingData("pydoc", max_length=32, max_samples=samples)
    task = HealingTask(data, method or Partial(train_last=1), schedule=Schedule(**schedule), **more)
    how = {"progress": progress} if progress else {}
    return heal(source, out, task, resume=resume, **how)


def words(source, out, *more):
    asked = {"--data": "pydoc", "--train-last": 1, "--max-length": 32, "--max-samples": 48}
    asked |= {f"--{name.replace('_', '-')}": value for name, value in SCHEDULE.items()}
    return ["heal", str(source), "-o", str(out), *(str(each) for pair in asked.items() for each in pair), *more]


def ended_by(number, step, source, out, said):
    """The exit code of a command that is sent a signal when a step has ended, every one before it being kept."""

    def life():
        training.KEEP_SECONDS, training.SHARE = 0.0, 1e9
        ended = training._Run.on_step_end

        def struck(run, args, state, control, **rest):
            if state.global_step == step:
                os.kill(os.getpid(), number)
            ended(run, args, state, control, **rest)

        training._Run.on_step_end = struck
        sys.argv, sys.stderr = ["shortstack", *words(source, out, "--resume")], sys.__stderr__  # not pytest's
        main()

    return in_child(life, said)


@pytest.mark.forks_that_train
def test_a_killed_healing_goes_on_and_ends_in_the_same_weights(folder, tmp_path):
    out, said = tmp_path / "out", tmp_path / "said"
    assert ended_by(signal.SIGTERM, 3, folder, out, said) == 128 + signal.SIGTERM
    assert f"Nothing unfinished at {out}.training: this run starts from the beginning.\n" in said.read_text()
    assert "stopped by SIGTERM" in said.read_text()
    assert ended_by(signal.SIGKILL, 6, folder, out, said) == -signal.SIGKILL, "the end of an epoch"
    assert f"An unfinished run lies at {out}.training, at step 3.\n" in said.read_text()
    assert not out.exists()

    source = Checkpoint.open(folder)
    with pytest.raises(OutputError, match=r"at step 5.*turn resume on to continue"):
        healed(source, out)
    for changed, named in (
        ({"schedule": {**SCHEDULE, "learning_rate": 2e-2}}, r"schedule\.learning_rate 0\.01"),
        ({"samples": 40}, r"data\.max_samples|data\.sha256|samples 48"),
        ({"method": Partial(train_last=2)}, r"method\.last 1"),
    ):
        with pytest.raises(InputError, match=named):
            healed(source, out, resume=True, **changed)

    seen = []
    whole = healed(source, tmp_path / "whole")
    result = healed(source, out, resume=True, progress=lambda stage, done, _total, note="": seen.append((stage, done)))
    assert min(done for stage, done in seen if stage == "healing") == 6
    assert result.history.held_out == whole.history.held_out
    assert weights(out) == weights(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out", "said", "whole"]
    again = invoke(*words(folder, out, "--resume"))
    assert isinstance(again.exception, OutputError)
    assert "found a finished output" in str(again.exception)


@pytest.mark.parametrize("begun", [True, False])
def test_of_a_run_that_was_begun_with_other_minutes_the_minutes_are_named(begun, source, tmp_path):
    def stop(stage, done, _total, note=""):
        if stage == "healing" and done == 1:
            raise KeyboardInterrupt

    clocked, plain = {**SCHEDULE, "minutes": 5.0}, SCHEDULE
    first, then = (clocked, plain) if begun else (plain, clocked)
    with pytest.raises(KeyboardInterrupt):
        healed(source, tmp_path / "out", schedule=first, progress=stop)
    with pytest.raises(InputError, match=r"resume: expected schedule\.minutes"):
        healed(source, tmp_path / "out", schedule=then, resume=True)


def test_a_new_start_forgets_the_unfinished_run(source, tmp_path):
    def stop(stage, done, _total, note):
        if stage == "healing" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        healed(source, tmp_path / "out", progress=stop)
    other = {**SCHEDULE, "max_steps": 2}
    assert healed(source, tmp_path / "out", schedule=other, resume=False).history.steps == 2
    assert not (tmp_path / "out.training").exists()


@pytest.mark.parametrize("gone", ["best-*", "checkpoint-*/trainer_state.json"])
def test_a_run_that_is_killed_while_its_state_is_removed_is_done_again(gone, source, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(training, "SHARE", 1e9)
    out = tmp_path / "out"

    def killed(_):
        for path in (tmp_path / "out.training").glob(gone):
            path.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            healed(source, out)
    assert (tmp_path / "out.training" / "run.json").exists()
    out.rename(tmp_path / "first")
    healed(source, out, resume=True)
    assert weights(out) == weights(tmp_path / "first")
    assert not (tmp_path / "out.training").exists()


def test_a_run_that_was_refused_or_came_to_nothing_is_in_nobodys_way(source, tmp_path):
    out, other = tmp_path / "out", Checkpoint.open(tiny("llama"))
    with pytest.raises(CheckpointError, match="a teacher with the vocabulary of the model that heals, 384 tokens"):
        healed(source, out, objective=Objective("distill"), teacher=other)

    def stop(stage, _done, _total, note=""):
        if stage == "running the frozen layers":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        healed(source, out, progress=stop)
    assert healed(source, out, schedule={"max_steps": 1}).history.steps == 1
