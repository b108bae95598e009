"""A healing that is killed goes on where it was, and only if it is asked for the same."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from command import invoke
from forks import in_child
from shortstack.checkpoint import Checkpoint
from shortstack.errors import CheckpointError, InputError, OutputError
from shortstack.healing import HealingTask, Objective, Partial, Schedule, TrainingData, heal, healer, training
from zoo import speaking, tiny

pytestmark = pytest.mark.usefixtures("own_cache")
SCHEDULE = {"num_train_epochs": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 8}


def healed(source, out, *, schedule=SCHEDULE, **options):
    names = {name: options.pop(name) for name in ("resume", "progress") if name in options}
    data = TrainingData("pydoc", max_length=32, max_samples=options.pop("max_samples", 48))
    settings = {"method": Partial(last=1), **options}
    return heal(source, out, HealingTask(data, schedule=Schedule(**schedule), **settings), **names)


def killed(source, out):
    """Whether a process that healed was killed in step 4."""

    def kill(stage, done, _total, note):
        if stage == "healing" and done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def life():
        training.KEEP_SECONDS, training.SHARE = 0.0, 1e9
        healed(source, out, progress=kill)

    return in_child(life) == -signal.SIGKILL


@pytest.mark.forks_that_train
def test_a_killed_healing_goes_on_and_ends_in_the_same_weights(tmp_path):
    source, out = Checkpoint.open(speaking(tmp_path / "source")), tmp_path / "out"
    assert killed(source, out)
    assert not out.exists()

    with pytest.raises(OutputError, match="step 3"):
        healed(source, out)
    for changed, named in (
        ({"schedule": {**SCHEDULE, "learning_rate": 2e-2}}, r"schedule\.learning_rate 0\.01"),
        ({"max_samples": 40}, r"data\.max_samples|data\.sha256|samples 48"),
        ({"method": Partial(last=2)}, r"method\.last 1"),
    ):
        with pytest.raises(InputError, match=named):
            healed(source, out, resume=True, **changed)

    seen = []
    whole = healed(source, tmp_path / "whole")
    result = healed(source, out, resume=True, progress=lambda stage, done, _total, note="": seen.append((stage, done)))
    assert min(done for stage, done in seen if stage == "healing") == 4
    assert result.history.held_out == whole.history.held_out
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out", "source", "whole"]


def test_a_new_start_forgets_the_unfinished_run(tmp_path):
    source, out = Checkpoint.open(speaking(tmp_path / "source")), tmp_path / "out"

    def stop(stage, done, _total, note):
        if stage == "healing" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        healed(source, out, progress=stop)
    healed(source, out, schedule={**SCHEDULE, "learning_rate": 2e-2}, resume=False)
    healed(source, tmp_path / "whole", schedule={**SCHEDULE, "learning_rate": 2e-2})
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_run_that_was_refused_or_came_to_nothing_is_in_nobodys_way(tmp_path):
    source, out = Checkpoint.open(speaking(tmp_path / "source")), tmp_path / "out"
    other = Checkpoint.open(tiny("llama"))
    with pytest.raises(CheckpointError, match="vocabulary"):
        healed(source, out, objective=Objective("distill"), teacher=other)

    def stop(stage, _done, _total, note=""):
        if stage == "walking the frozen layers":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        healed(source, out, progress=stop)
    assert healed(source, out).history.steps > 0


def test_a_signal_to_the_command_line_leaves_a_state_to_go_on_from(tmp_path):
    source = speaking(tmp_path / "source")
    text = tmp_path / "long.txt"
    text.write_text("the walk visits every layer once and in order. " * 4000)
    command = [
        sys.executable,
        "-m",
        "shortstack",
        "heal",
        str(source),
        "--data",
        str(text),
        "-o",
        str(tmp_path / "out"),
    ]
    running = subprocess.Popen(
        [*command, "--num-train-epochs", "1000", "--max-length", "32"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in running.stderr:
        if line.startswith("healing"):
            break
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=10)
    assert running.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in said
    again = invoke(*command[3:], "--num-train-epochs", "1000", "--max-length", "32")
    assert isinstance(again.exception, OutputError)
    assert "come to step" in str(again.exception)
    assert "turn resume on to go on" in str(again.exception)


@pytest.mark.forks_that_train
def test_going_on_says_what_it_goes_on_with(tmp_path, monkeypatch):
    source, out = speaking(tmp_path / "source"), tmp_path / "out"
    command = [
        "heal",
        str(source),
        "--data",
        "pydoc",
        "-o",
        str(out),
        "--last",
        "1",
        "--num-train-epochs",
        "3",
        "--learning-rate",
        "0.01",
    ]
    command += ["--per-device-train-batch-size", "8", "--max-length", "32", "--max-samples", "48", "--resume", "-q"]
    nothing = invoke(*command)
    assert nothing.exit_code == 0, nothing.output
    assert nothing.stderr == f"Nothing unfinished at {out}.training: this run starts from the beginning.\n"
    again = invoke(*command)
    assert isinstance(again.exception, OutputError)
    assert "that run has ended" in str(again.exception)

    shutil.rmtree(out)
    assert killed(Checkpoint.open(source), out)
    assert invoke(*command).stderr == f"An unfinished run lies at {out}.training, at step 3.\n"
    assert out.is_dir()

    shutil.rmtree(out)
    monkeypatch.setattr(healer.HealingRun, "train", interrupted)
    invoke(*command)
    assert invoke(*command).stderr.startswith("The unfinished run")


def interrupted(*_arguments, **_options):
    raise KeyboardInterrupt
