"""Two processes give the weights of one: data parallel, and sharded by FSDP2."""

import os
import socket
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from forks import exit_code, start
from shortstack.checkpoint import Checkpoint
from shortstack.cli import main
from shortstack.healing import Full, HealingConfig, heal, prune_iteratively, training

OPTIONS = {
    "num_train_epochs": 1,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "optim": "sgd",  # AdamW's first steps have the size of none but the rate: rounding would grow
}
DATA = {"data": "pydoc", "max_length": 32, "max_samples": 24, "held_out": 8}
CONFIG = HealingConfig(**DATA, **OPTIONS, method=Full())
ROUNDS = {"drop": "2", "metric": "reverse"}
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def rank(number, port, words, environment, told):
    """One of two processes, as a launcher starts it."""
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, ACCELERATE_USE_CPU="true", **environment)
    sys.argv, sys.stderr = ["shortstack", *words], sys.__stderr__  # not pytest's
    training.SAVE_SECONDS, training.SAVE_SHARE = (0.0, 1e9)[number], 1e9  # a checkpoint is due by the clock of one
    with told.open("a") as sys.stdout:
        main()


def in_two(folder, out, options, **environment):
    """The command in two processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {"method": "full", **DATA, **OPTIONS, **options}
    words = ["heal", str(folder), "-o", str(out), "--json", "-q"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    told, errors = (out.with_name(f"{out.name}-{kind}.txt") for kind in ("told", "errors"))
    children = [start(partial(rank, number, port, words, environment, told), errors) for number in range(2)]
    assert [exit_code(child) for child in children] == [0, 0], errors.read_text()
    assert told.read_text().count('"output"') == 1, "one of them speaks"


@pytest.mark.forks_that_train
def test_two_processes_give_the_weights_of_one(folder, tmp_path, monkeypatch):
    """In rounds one process prunes: the other would find its output there already."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shortstack.healing.memory.fast_bfloat16", lambda _device: False)
    in_two(folder, tmp_path / "sharded", {}, **SHARDED)
    in_two(folder, tmp_path / "rounds", {**ROUNDS, "layers_per_round": 1})
    left = {path.name for path in tmp_path.glob("[!c]*") if path.is_dir()}  # beside the cache
    assert left == {"sharded", "rounds"}, "no state of the training stays"

    source = Checkpoint.open(folder)
    assert heal(source, tmp_path / "alone", CONFIG).history.steps == 2
    prune_iteratively(source, tmp_path / "alone-rounds", CONFIG, **ROUNDS, step=1)
    for both, alone in (("sharded", "alone"), ("rounds", "alone-rounds")):
        weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in (both, alone))
        assert weights.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-4, msg=name)
