"""Memory and speed of a streamed walk: four synthetic checkpoints of one width and 8, 16, 32 and 64 layers.

Each is scored by `bi` with `stream=True` on 2 x 64 tokens, in a process of its own; another process reads the same files
once from start to end. Before either, this machine's page cache lets go of the files.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from harness import median, ratios, spread, table

LAYERS = (8, 16, 32, 64)
READ = """
import sys
block = bytearray(16 << 20)
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(block):
            pass
"""
MAKE = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(
    num_hidden_layers=int(sys.argv[2]), hidden_size=int(sys.argv[3]), intermediate_size=5632, num_attention_heads=16,
    num_key_value_heads=4, vocab_size=8192, max_position_embeddings=512, tie_word_embeddings=True, dtype="bfloat16",
)
torch.set_default_dtype(torch.bfloat16)
LlamaForCausalLM(config).save_pretrained(sys.argv[1], max_shard_size="1GB")
"""
SCORE = """
import sys
import time
import torch
from shortstack.checkpoint.checkpoint import Checkpoint
from shortstack.scoring.scorer import score
from shortstack.data.tokens import Tokens
from shortstack.machine.device import Compute
checkpoint = Checkpoint.open(sys.argv[1])
ids = torch.randint(0, 8192, (2, 64), generator=torch.Generator().manual_seed(0))
started = time.perf_counter()
tokens, compute = Tokens(ids, "random", False, 0), Compute(dtype="bfloat16", device="cpu", stream=True)
score(checkpoint, tokens, metrics=["bi"], compute=compute)
print(time.perf_counter() - started)
"""


def python(code: str, *arguments: object) -> harness.Ran:
    return harness.measured([sys.executable, "-c", code, *map(str, arguments)], {"HF_HUB_OFFLINE": "1"})


def forget(files: Sequence[Path]) -> None:
    """Have the page cache let go of the files."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def held(layers: int, rounds: int, width: int) -> dict[str, Any]:
    """Size of the weights, and of every round: seconds of reading and of scoring, and the most memory scoring held."""
    with tempfile.TemporaryDirectory() as folder:
        python(MAKE, folder, layers, width)
        files = sorted(Path(folder).glob("*.safetensors"))
        reading, scoring, rss = [], [], []
        for _ in range(rounds):
            forget(files)
            reading.append(python(READ, *files).seconds)
            forget(files)
            ran = python(SCORE, folder)
            scoring.append(float(ran.output.split()[-1]))
            rss.append(ran.peak_rss)
        size = sum(file.stat().st_size for file in files)
    found = {"bytes": size, "reading": reading, "scoring": scoring, "peak_rss": rss}
    print(f"  {layers} layers: {found}", file=sys.stderr)
    return found


def row(layers: int, found: dict[str, Any]) -> tuple[str, ...]:
    rss = median(found["peak_rss"])
    return (
        str(layers),
        f"{found['bytes'] / 1e6:,.0f}",
        f"{rss / 1e6:,.0f}",
        f"{rss / found['bytes']:.2f}",
        spread(found["reading"]),
        spread(found["scoring"]),
        spread(ratios(found["scoring"], found["reading"])),
    )


def main() -> None:
    chosen = harness.parser(__doc__, rounds=3).parse_args()
    layers, rounds, width = ((2,), 1, 64) if chosen.smoke else (LAYERS, chosen.rounds, 2048)
    found = {each: held(each, rounds, width) for each in layers}
    heading = (
        "layers", "weights, MB", "peak RSS, MB", "over weights", "one sequential read, s", "score, s", "score over read"
    )  # fmt: skip
    data: dict[str, Any] = {
        "machine": harness.machine(),
        "versions": harness.versions("shortstack", "torch", "transformers"),
        "command": harness.command_line(),
        "found": found,
    }
    rows = [row(layers, each) for layers, each in found.items()]
    harness.save("streamed", data, [__doc__.strip(), table(heading, rows)], smoke=chosen.smoke)


if __name__ == "__main__":
    main()
