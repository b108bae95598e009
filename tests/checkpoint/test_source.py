"""The model that a name stands for, of which headers alone are read, whatever its size."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.card import base_model
from shortstack.checkpoint.file_names import DEMO_HUB_ID
from shortstack.checkpoint.source import gguf_of
from shortstack.errors import CheckpointError
from zoo import tiny


def test_a_folder_named_demo_comes_before_the_packaged_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_model({"source": {"id": "demo"}}) == DEMO_HUB_ID
    shutil.copytree(tiny("llama"), "demo")
    assert Checkpoint.open("demo").anatomy.layers == 8
    assert gguf_of("demo") is None
    assert base_model({"source": {"id": "demo"}}) is None


@pytest.mark.parametrize(
    "names", [("Notes.txt", "notes.txt"), ("caf\u00e9.json", "cafe\u0301.json")], ids=["case", "unicode"]
)
def test_names_that_are_one_file_elsewhere_are_refused(names, tmp_path):
    shutil.copytree(tiny("llama"), tmp_path / "model")
    for name in names:
        (tmp_path / "model" / name).write_text("{}", encoding="utf-8")
    if len([*(tmp_path / "model").iterdir()]) == len([*tiny("llama").iterdir()]) + 1:
        pytest.skip("they are one file here")
    with pytest.raises(CheckpointError, match="one name"):
        Checkpoint.open(tmp_path / "model")


LAYER = {"self_attn.q_proj": (16384, 16384), "mlp.down_proj": (16384, 53248)}
LAYERS = 60


def sparse_giant(directory: Path) -> Path:
    """A 140 GB checkpoint of which only the headers are on disk."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": LAYERS,
        "hidden_size": 16384,
    }
    (directory / "config.json").write_text(json.dumps(config))
    header, position = {}, 0
    for layer, (name, shape) in itertools.product(range(LAYERS), LAYER.items()):
        end = position + 2 * shape[0] * shape[1]
        tensor = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        header[f"model.layers.{layer}.{name}.weight"], position = tensor, end
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + position)
    return directory


@pytest.mark.skipif(sys.platform != "linux", reason="counts bytes read through /proc/self/io")
def test_opening_and_planning_140_gb_reads_kilobytes(tmp_path):
    directory = sparse_giant(tmp_path)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.anatomy.layers == LAYERS  # builds the architecture once, so that what follows reads no code
    before = bytes_read()
    again = Checkpoint.open(directory)
    sized = plan(LAYERS, layers="50-59").sized(again.sizes)
    assert again.weight_bytes > 136e9
    assert bytes_read() - before < 2_000_000
    assert sized.bytes is not None
    assert sized.bytes.before - sized.bytes.after == again.weight_bytes // 6


def bytes_read() -> int:
    return int(
        next(line.split()[1] for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    )
