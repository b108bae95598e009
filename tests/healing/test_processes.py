"""Two processes give the weights of one: data parallel, and sharded by FSDP2."""

import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

from shortstack.checkpoint import Checkpoint
from shortstack.healing import Full, HealingTask, Schedule, TrainingData, Turns, heal, heal_in_turns
from zoo import speaking

RUN = """
import sys
import shortstack.healing.healer as healer
healer.fast_bfloat16 = lambda _device: False
from shortstack.cli import main
main()
"""
OPTIONS = {
    "num_train_epochs": 1,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
}
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def in_two(tmp_path, source, *words, **environment):
    """The command in two processes of this machine, and the weights of `both` beside those of `alone`."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    found = subprocess.run(
        [*launch, "heal", str(source.directory), "-o", str(tmp_path / "both"), "--json", "-q", *words],
        env={**os.environ, **environment, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count('"output"') == 1, "one of them speaks"
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "alone"))
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def spelled(options):
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def test_two_processes_that_share_the_weights_give_those_of_one(tmp_path, monkeypatch):
    """By FSDP2; that data alone are shared is seen in the turns below."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shortstack.healing.healer.fast_bfloat16", lambda _device: False)
    source = Checkpoint.open(speaking(tmp_path / "source"))
    alone = heal(
        source,
        tmp_path / "alone",
        HealingTask(
            TrainingData("pydoc", max_length=32, max_samples=40, held_out=8), Full(), schedule=Schedule(**OPTIONS)
        ),
    )
    asked = ["--data", "pydoc", "--method", "full", "--max-length", "32", "--max-samples", "40", "--held-out", "8"]
    in_two(tmp_path, source, *asked, *spelled(OPTIONS), **SHARDED)
    assert alone.history.steps == 4
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()} - {"cache"}
    assert left == {"alone", "both", "source"}, "no state of the training stays"


def test_two_processes_prune_and_heal_in_turns(tmp_path, monkeypatch):
    """One of them chooses and cuts: the other would find its output there already."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shortstack.healing.healer.fast_bfloat16", lambda _device: False)
    source = Checkpoint.open(speaking(tmp_path / "source"))
    plain = {
        **OPTIONS,
        "optim": "sgd",
    }  # AdamW's first steps have the size of none but the rate: rounding would grow
    schedule = Schedule(**plain)
    data = TrainingData("pydoc", max_length=32, max_samples=24, held_out=8)
    heal_in_turns(source, tmp_path / "alone", Turns("2", 1, "reverse"), HealingTask(data, Full(), schedule=schedule))
    asked = ["--data", "pydoc", "--method", "full", "--max-length", "32", "--max-samples", "24", "--held-out", "8"]
    turns = ["--drop", "2", "--step", "1", "--metric", "reverse"]
    in_two(tmp_path, source, *asked, *spelled(plain), *turns)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "both.", "alone."))]
