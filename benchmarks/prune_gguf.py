"""How long `shortstack prune MODEL.gguf` takes, and how much memory, beside `cp` of the same bytes.

    python benchmarks/prune_gguf.py --rounds 3     # 13 GB of disk, deleted after
    python benchmarks/prune_gguf.py --smoke        # a tiny file, seconds

The file has the shape of Llama-3.1-8B with Q4_0 layers, of random bytes. Both sides run as processes of their own, in turn,
from a file that was just read; time ends when what was written is fsynced (prune does it itself).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
from harness import measured, median, ratios, spread, table, verdict

AIMS = {"wall": 1.25, "anonymous": 200 * 10**6}
BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18  # of Q4_0


@dataclass(frozen=True)
class Size:
    """A Llama. cut: the layers that go."""

    layers: int
    width: int
    inner: int
    kv: int
    vocabulary: int
    cut: str

    def shapes(self) -> Iterator[tuple[str, int, int]]:
        """Every matrix: its name, rows and columns."""
        yield "token_embd.weight", self.vocabulary, self.width
        for layer in range(self.layers):
            for name, rows, columns in (
                ("attn_q", self.width, self.width),
                ("attn_k", self.kv, self.width),
                ("attn_v", self.kv, self.width),
                ("attn_output", self.width, self.width),
                ("ffn_gate", self.inner, self.width),
                ("ffn_up", self.inner, self.width),
                ("ffn_down", self.width, self.inner),
            ):
                yield f"blk.{layer}.{name}.weight", rows, columns
        yield "output.weight", self.vocabulary, self.width


FULL = Size(32, 4096, 14_336, 1024, 128_256, "3,7,11,15,19,23,27,30")
SMOKE = Size(4, 64, 128, 32, 256, "2")


def make(path: Path, size: Size) -> None:
    """Write it; every matrix is a piece of the same random bytes."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(size.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(size.width)
    writer.add_feed_forward_length(size.inner)
    writer.add_head_count(size.width // 32)
    writer.add_head_count_kv(size.kv // 32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"t{number}" for number in range(size.vocabulary)])
    largest = max(rows * columns for _, rows, columns in size.shapes()) // BLOCK_WEIGHTS * BLOCK_BYTES
    noise = np.frombuffer(os.urandom(largest), dtype=np.uint8)
    for name, rows, columns in size.shapes():
        row = columns // BLOCK_WEIGHTS * BLOCK_BYTES
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(name, noise[: rows * row].reshape(rows, row), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a tiny file, once; nothing is kept")
    chosen = parser.parse_args()
    size, rounds = (SMOKE, 1) if chosen.smoke else (FULL, chosen.rounds)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="benchmark-") as folder:
        found = contest(Path(folder), size, rounds)
    head = {
        "command": harness.command_line(),
        "machine": harness.machine(),
        "versions": harness.versions("torch", "gguf"),
    }
    harness.save("prune_gguf", head | found, [report(found)], smoke=chosen.smoke)


def contest(folder: Path, size: Size, rounds: int) -> dict[str, Any]:
    """Both sides, in turn; what each took."""
    source, reference, out = folder / "source.gguf", folder / "reference.gguf", folder / "out.gguf"
    make(source, size)
    prune = [sys.executable, "-m", "shortstack", "prune", str(source), "--layers", size.cut, "--quiet", "-o"]
    measured([*prune, str(reference)])
    commands = {"cp": ["cp", str(reference), str(out)], "prune": [*prune, str(out)]}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for turn in range(rounds):
        for name in harness.rotated(list(commands), turn):
            read_through(reference if name == "cp" else source)
            started = time.perf_counter()
            ran = measured(commands[name])
            synced(out)
            runs[name].append({**asdict(ran), "seconds": time.perf_counter() - started, "output": ""})
            if not same_tensors(out, reference):
                raise RuntimeError(f"{name} wrote other tensors")
            out.unlink()
    return {"source_bytes": source.stat().st_size, "kept_bytes": reference.stat().st_size, "runs": runs}


def read_through(path: Path) -> None:
    """Have the page cache hold what it can of a file, and the disk be idle."""
    buffer = bytearray(16 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    os.sync()


def synced(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def same_tensors(one: Path, other: Path) -> bool:
    """Whether both have the same names, shapes and kinds, as gguf-py reads them."""
    import gguf

    first, second = (gguf.GGUFReader(path).tensors for path in (one, other))
    return [(each.name, each.shape.tolist(), each.n_bytes) for each in first] == [
        (each.name, each.shape.tolist(), each.n_bytes) for each in second
    ]


def report(found: dict[str, Any]) -> str:
    runs = found["runs"]
    seconds = {name: [each["seconds"] for each in some] for name, some in runs.items()}
    over = ratios(seconds["prune"], seconds["cp"])
    anonymous = max(each["peak_anonymous"] for each in runs["prune"])
    rows = [
        (
            name,
            spread(seconds[name]),
            f"{median([each['cpu_seconds'] for each in some]):.1f}",
            *(f"{max(each[kind] for each in some) / 1e6:.0f}" for kind in ("peak_rss", "peak_anonymous")),
        )
        for name, some in runs.items()
    ]
    sizes = f"{found['source_bytes'] / 1e9:.2f} GB, of which {found['kept_bytes'] / 1e9:.2f} GB are written."
    aims = (
        f"prune over cp, same round: {spread(over)}, aim {AIMS['wall']}: {verdict(median(over) <= AIMS['wall'])}. "
        f"Memory of its own: {anonymous / 1e6:.0f} MB, aim {AIMS['anonymous'] / 1e6:.0f}: "
        f"{verdict(anonymous <= AIMS['anonymous'])}."
    )
    heading = ("contender", "wall, s: median (range)", "CPU, s", "peak RSS, MB", "of its own, MB")
    return "\n\n".join([sizes, table(heading, rows), aims])


if __name__ == "__main__":
    main()
