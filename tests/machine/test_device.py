"""Devices by name, with two GPUs and with none."""

import pytest
import torch

from shortstack.errors import InputError
from shortstack.healing.training import training_device
from shortstack.machine.device import pick_device


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "cpu"])
def test_present_device_is_taken_by_its_name(name, two_gpus):
    assert pick_device(name) == name
    assert pick_device("auto") == "cuda"


@pytest.mark.parametrize("name", ["cuda:2", "cuda:-1", "cuda:x", "cuda:"])
def test_missing_gpu_is_refused(name, two_gpus):
    with pytest.raises(InputError, match="device:"):
        pick_device(name)


def test_gpu_is_refused_without_any(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device:"):
        pick_device("cuda:1")


def test_training_takes_the_first_gpu_or_that_of_its_process(two_gpus, monkeypatch):
    assert [training_device(name) for name in ("cuda", "cuda:0", "auto")] == ["cuda", "cuda:0", "cuda"]
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES=1"):
        training_device("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training_device("auto") == "cuda:1"
