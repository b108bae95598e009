"""GGUF files as bytes, beside gguf-py's own reader and writer."""

import re
import struct
from contextlib import suppress

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_models import fields
from shortstack.checkpoint.gguf_file import read_gguf, write_gguf
from shortstack.errors import CheckpointError

RNG = np.random.default_rng(0)


def made(path, *, alignment=None):
    """A file by gguf-py's writer, with tensors that do not end where the next begins."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(2)
    writer.add_array("llama.attention.head_count_kv", [1, 2])
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("general.name", "ein Modell, größer als nötig")
    writer.add_token_list(["a", "b", "Ġc", "\u2581d"])
    writer.add_tensor("token_embd.weight", RNG.normal(size=(5, 8)).astype("float32"))
    writer.add_tensor("blk.0.attn_norm.weight", RNG.normal(size=3).astype("float32"))
    writer.add_tensor("blk.0.ffn_up.weight", RNG.normal(size=(3, 7)).astype("float16"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def seen(path):
    """Read a file by gguf-py."""
    tensors = {
        tensor.name: (int(tensor.tensor_type), tensor.data.tobytes()) for tensor in gguf.GGUFReader(path).tensors
    }
    return fields(path), tensors


@pytest.mark.parametrize("alignment", [None, 8])
def test_what_is_read_is_what_gguf_py_reads(alignment, tmp_path):
    path = made(tmp_path / "a.gguf", alignment=alignment)
    found, (said, tensors) = read_gguf(path), seen(path)
    assert {name: entry.value for name, entry in found.entries.items()} == said
    assert found.architecture == "llama"
    for tensor in found.tensors:
        kind, data = tensors[tensor.name]
        assert tensor.kind == kind
        assert path.read_bytes()[tensor.data.start : tensor.data.end].startswith(data)
        assert len(tensor.data) - len(data) < (alignment or 32)


def test_what_is_written_again_is_the_same_to_gguf_py(tmp_path):
    path = made(tmp_path / "a.gguf", alignment=64)
    found = read_gguf(path)
    write_gguf(tmp_path / "b.gguf", found.entries, found.tensors, like=found)
    assert seen(tmp_path / "b.gguf") == seen(path)
    write_gguf(tmp_path / "c.gguf", found.entries, found.tensors[::-1], like=found)
    assert seen(tmp_path / "c.gguf")[1] == seen(path)[1]


@pytest.mark.parametrize("first", [1, 0], ids=["tensors in both", "metadata alone in the first"])
def test_a_model_in_parts_is_one_and_a_missing_part_is_named(first, tmp_path):
    found = read_gguf(made(tmp_path / "a.gguf"))
    for number, tensors in enumerate((found.tensors[:first], found.tensors[first:]), start=1):
        entries = found.entries if number == 1 else {}
        write_gguf(tmp_path / f"m-{number:05d}-of-00002.gguf", entries, tensors, like=found)
    for number in (1, 2):
        whole = read_gguf(tmp_path / f"m-{number:05d}-of-00002.gguf")
        assert [tensor.name for tensor in whole.tensors] == [tensor.name for tensor in found.tensors]
        assert whole.architecture == "llama"
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match=re.escape("m-00002-of-00002.gguf")):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_are_read_or_refused_in_words(changes, tmp_path_factory):
    path = made(tmp_path_factory.mktemp("gguf") / "a.gguf")
    content = bytearray(path.read_bytes())
    header = min(tensor.data.start for tensor in read_gguf(path).tensors)
    for place, value in changes:
        content[place % header] = value
    path.write_bytes(content)
    with suppress(CheckpointError):
        found = read_gguf(path)
        assert all(tensor.data.end <= len(content) for tensor in found.tensors)
        assert len({name: entry.value for name, entry in found.entries.items()}) == len(found.entries)
        assert found.architecture


def head(version=3, tensors=0, entries=0, order="<"):
    return b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, entries)


BROKEN = {
    "no GGUF": b"GGML" + bytes(40),
    "version 1": head(version=1),
    "big-endian": head(order=">"),
    "tensors": head(tensors=2**60),
    "length of a name": head(entries=1) + struct.pack("<Q", 2**63) + b"name",
    "kind of metadata": head(entries=1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77),
    "empty": b"",
    "cut in the last tensor": None,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(name, tmp_path):
    path = made(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-40] if BROKEN[name] is None else BROKEN[name])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_gguf(path)
