"""Available memory, and models that do not fit."""

import sys
import weakref

import psutil
import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.errors import InputError
from shortstack.machine import memory
from shortstack.machine.device import Compute
from zoo import tiny


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no ulimit")
@pytest.mark.parametrize(("limit", "kind"), [("RLIMIT_DATA", "data"), ("RLIMIT_AS", "vms")])
def test_available_memory_respects_ulimit(limit, kind, monkeypatch):
    allowed = getattr(psutil.Process().memory_info(), kind) + (300 << 20)
    limits = {getattr(memory.resource, limit): allowed}
    real = memory.resource.getrlimit
    monkeypatch.setattr(memory.resource, "getrlimit", lambda number: (limits.get(number, real(number)[0]), -1))
    assert memory.available_memory("cpu") == pytest.approx(300 << 20, abs=20 << 20)


@pytest.mark.parametrize(("line", "kind"), [("0::/some/group", ""), ("7:cpu,memory:/some/group", "memory")])
def test_available_memory_respects_nested_control_group(line, kind, tmp_path, monkeypatch):
    nested = tmp_path / "some" / "group"
    nested.mkdir(parents=True)
    (nested / "limit").write_text("5000000\n")
    (nested / "used").write_text("1000000\n")
    (tmp_path / "limit").write_text("max\n")
    (tmp_path / "membership").write_text(f"1:name=other:/elsewhere\n{line}\n")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", {kind: (tmp_path / "limit", tmp_path / "used")})
    assert memory.available_memory("cpu") == 4000000
    (nested / "memory.stat").write_text("anon 200000\ninactive_file 300000\nactive_file 400000\n")
    assert memory.available_memory("cpu") == 4700000, "cached files can be taken back"
    (nested / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500000\ntotal_active_file 0\n")
    assert memory.available_memory("cpu") == 4500000, "of a group and those below it"


class Loaded:
    """A model in a circle, as models are: only gc.collect() frees it."""

    def __init__(self):
        self.itself = self


class Gpu:
    """A stand-in for torch.cuda: 10 GB, of which tensors of models hold some and torch keeps 3 GB more."""

    def __init__(self):
        self.models, self.kept = [], 3 * 10**9

    def load(self):
        model = Loaded()
        self.models.append(weakref.ref(model))
        return model

    def memory_allocated(self, _device):
        return sum(4 * 10**9 for model in self.models if model())

    def memory_reserved(self, device):
        return self.memory_allocated(device) + self.kept

    def mem_get_info(self, device):
        return 10**10 - self.memory_reserved(device), 10**10

    def empty_cache(self):
        self.kept = 10**9  # torch cannot give back all


def test_free_gpu_memory_counts_what_torch_keeps_so_a_second_model_loads(monkeypatch):
    gpu = Gpu()
    for name in ("memory_allocated", "memory_reserved", "mem_get_info", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    model = gpu.load()
    assert memory.available_memory("cuda:0") == 6 * 10**9
    del model
    assert memory.available_memory("cuda:0") == 10**10


def test_model_without_room_is_refused_before_it_is_read(monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    half, whole = checkpoint.parameters * 2, checkpoint.parameters * 4
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("was read"))
    monkeypatch.setattr(memory, "available_memory", lambda _device: whole - 1)
    with pytest.raises(InputError) as refused:
        Decoder.open(checkpoint, Compute(dtype="float32", device="cpu", stream=False))
    assert checkpoint.source in str(refused.value)
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available_memory", lambda _device: half)
    assert Decoder.open(checkpoint, Compute(dtype="bfloat16", device="cpu", stream=False)).dtype == "bfloat16"


def test_room_is_refused_below_what_is_needed(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda _device: 8 * 10**9)
    memory.Memory(8 * 10**9).check("a model")
    with pytest.raises(InputError, match=r"a model .*16\.0 GB.*cuda:0.*8\.0 GB"):
        memory.Memory(16 * 10**9, "cuda:0").check("a model")
