"""Shards: what is read agrees with the safetensors library, what is broken is refused, what is written is what was kept."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from shortstack.checkpoint.pieces import Span
from shortstack.checkpoint.safetensors import StoredTensor, read_shard, write_shard
from shortstack.errors import CheckpointError
from shortstack.machine.files import file_digest

TENSORS = {
    "a.bytes": torch.arange(7, dtype=torch.uint8),
    "b.wide": torch.arange(12, dtype=torch.float64).reshape(3, 4),
    "c.half": torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "d.scalar": torch.tensor(3, dtype=torch.int32),
    "e.empty": torch.zeros(0, 4),
    "f.flags": torch.tensor([True, False, True]),
}
VALID = save(TENSORS, metadata={"format": "pt"})
COUNTER = itertools.count()
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, content: bytes) -> Path:
    path = folder / f"{next(COUNTER)}.safetensors"
    path.write_bytes(content)
    return path


def shard(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def u8(start: int, end: int, **changes: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end], **changes}


def stored_bytes(tensor: StoredTensor) -> bytes:
    assert isinstance(tensor.data, Span)
    return tensor.data.path.read_bytes()[tensor.data.start : tensor.data.end]


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def library_reads(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
some_tensors = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
    min_size=1,
    max_size=5,
).map(lambda specs: {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in specs.items()})


@RELAXED
@given(tensors=some_tensors)
def test_a_valid_file_is_read_as_the_library_reads_it(tensors, tmp_path):
    path = written(tmp_path, save(tensors))
    found = {tensor.name: tensor for tensor in read_shard(path)}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].parameters == tensor.numel()
        assert stored_bytes(found[name]) == tensor_bytes(tensor)


BROKEN = {
    "huge header": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "not JSON": shard(b"{'a': 1}"),
    "too deep": shard(b"[" * 100_000),
    "gap": shard({"a": u8(0, 1), "b": u8(2, 3)}, b"xyz"),
    "unknown dtype": shard({"a": u8(0, 1, dtype="U9")}, b"x"),
    "lone surrogate": shard(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "trailing byte": VALID + b"\0",
    "cut before the last byte": VALID[:-1],
}


@pytest.mark.parametrize("name", [*BROKEN, "no file"])
def test_a_broken_file_is_refused_by_name(name, tmp_path):
    path = written(tmp_path, BROKEN[name]) if name in BROKEN else tmp_path / "none.safetensors"
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_shard(path)


def no_kernel_copy(error: int | None):
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        if error is None:
            monkeypatch.delattr(os, "copy_file_range", raising=False)
        else:
            monkeypatch.setattr(
                os, "copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(error, "no")), raising=False
            )

    return patch


def kernel_copies_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bytes at a time, then an error: the rest must follow exactly."""
    real, calls = os.copy_file_range, itertools.count()

    def copy(source: int, sink: int, count: int, offset: int) -> int:
        if next(calls) % 3 == 2:
            raise OSError(errno.EXDEV, "no")
        return real(source, sink, min(count, 3), offset)

    monkeypatch.setattr(os, "copy_file_range", copy)


COPIES = {
    "kernel": lambda monkeypatch: None,
    "absent": no_kernel_copy(None),
    "EXDEV": no_kernel_copy(errno.EXDEV),
    "part": kernel_copies_little,
}


@pytest.mark.parametrize("how", COPIES)
def test_written_shards_are_byte_equal_and_digested(how, tmp_path, monkeypatch):
    if how in {"kernel", "part"} and not hasattr(os, "copy_file_range"):
        pytest.skip("this system has no copy_file_range")
    kept = [tensor for tensor in read_shard(written(tmp_path, VALID)) if tensor.name != "b.wide"]
    kept.append(StoredTensor("in.memory", "F32", (2,), tensor_bytes(torch.tensor([1.5, -2.0]))))
    COPIES[how](monkeypatch)
    monkeypatch.setattr("shortstack.checkpoint.pieces.BLOCK_BYTES", 4)
    monkeypatch.setattr("shortstack.checkpoint.pieces.KERNEL_BLOCK_BYTES", 16)
    write = os.write
    monkeypatch.setattr(os, "write", lambda sink, view: write(sink, view[:3]))  # a system may write less at once
    told: list[int] = []
    result = write_shard(tmp_path / "out.safetensors", kept, told.append)

    content = (tmp_path / "out.safetensors").read_bytes()
    assert (result.size, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert file_digest(tmp_path / "out.safetensors") == result.sha256
    assert sum(told) == len(content)
    found = library_reads(tmp_path / "out.safetensors")
    expected = {name: tensor for name, tensor in TENSORS.items() if name != "b.wide"}
    expected["in.memory"] = torch.tensor([1.5, -2.0])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert tensor_bytes(found[name]) == tensor_bytes(tensor)


def test_a_source_that_shrinks_meanwhile_is_refused_and_no_file_is_overwritten(tmp_path):
    path = written(tmp_path, VALID)
    kept = read_shard(path)
    path.write_bytes(VALID[:-1])
    with pytest.raises(CheckpointError, match="ends after"):
        write_shard(tmp_path / "out.safetensors", kept, lambda count: None)
    with pytest.raises(FileExistsError):
        write_shard(path, kept, lambda count: None)
    assert path.read_bytes() == VALID[:-1]
