"""Opening reads headers only, whatever the size."""

import itertools
import json
import sys
from pathlib import Path

import pytest

from plans import plan
from shortstack.checkpoint import Checkpoint

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
