"""The whole line in little memory, on random weights: of Llama-3.1-8B's shape, which is larger than its 6 GB, and of others.

    python benchmarks/large.py                  # 20 minutes, 50 GB of disk; needs root, to set a limit by a control group
    python benchmarks/large.py --size 0.5B      # the shape of Qwen2.5-0.5B, which fits
    python benchmarks/large.py --size 135M      # SmolLM2's
    python benchmarks/large.py --smoke

Each verb is a process of its own in that group; the page cache lets go of the checkpoint before. bytes read: from the disk
(getrusage). work: floating-point operations as torch counts them (matrix products and attention; of a backward pass, too),
over the time and over what this machine does in one large product of the same dtype, measured before. foreseen: the
memory that the same command with --dry-run said before it, in the same group, libraries included. own: of the peak, what
is no page of a file. A loader of transformers maps the checkpoint, whose pages count in the peak though the system takes
them back where memory is short; what is foreseen leaves them out.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness import table

MAIN = Path(__file__).resolve()
BLOCK = 1 << 23  # numbers that are drawn; all matrices are parts of them


@dataclass(frozen=True)
class Shape:
    """A model in bf16. limit: bytes of memory for each verb; last: layers that heal trains."""

    config: dict[str, Any]
    drop: int
    limit: int
    last: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor, in layer order."""
        config = self.config
        width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        head = config["head_dim"]
        keys, queries = config["num_key_value_heads"] * head, config["num_attention_heads"] * head
        yield "model.embed_tokens.weight", (vocabulary, width)
        for layer in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (width,)
            for name, size in {"q": queries, "k": keys, "v": keys}.items():
                yield f"{prefix}.self_attn.{name}_proj.weight", (size, width)
            yield f"{prefix}.self_attn.o_proj.weight", (width, queries)
            yield f"{prefix}.post_attention_layernorm.weight", (width,)
            yield f"{prefix}.mlp.gate_proj.weight", (inner, width)
            yield f"{prefix}.mlp.up_proj.weight", (inner, width)
            yield f"{prefix}.mlp.down_proj.weight", (width, inner)
        yield "model.norm.weight", (width,)
        if not config["tie_word_embeddings"]:
            yield "lm_head.weight", (vocabulary, width)

    def files(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """The tensors of each file, of about 2 GB."""
        some, filled = dict[str, tuple[int, ...]](), 0
        for name, size in self.tensors():
            some[name], filled = size, filled + 2 * math.prod(size)
            if filled > 2 * GB:
                yield some
                some, filled = {}, 0
        if some:
            yield some


def llama(*, layers: int, width: int, inner: int, heads: int, keys: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": width // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }


GB = 10**9
SIZES = {
    "8B": Shape(
        llama(layers=32, width=4096, inner=14336, heads=32, keys=8, vocabulary=128256, tied=False), 4, 6 * GB, last=3
    ),
    "0.5B": Shape(
        llama(layers=24, width=896, inner=4864, heads=14, keys=2, vocabulary=151936, tied=True), 6, 6 * GB, last=3
    ),
    "135M": Shape(
        llama(layers=30, width=576, inner=1536, heads=9, keys=3, vocabulary=49152, tied=True), 8, 6 * GB, last=3
    ),
}
SMOKE = Shape(llama(layers=8, width=64, inner=128, heads=4, keys=2, vocabulary=49152, tied=False), 2, 6 * GB, last=2)


def child_make(shape: Shape, out: str) -> None:
    """Matrices from one block of normal numbers, each from another place; norms of ones; the demo's tokenizer."""
    import torch
    from safetensors.torch import save_file

    import shortstack as ss

    drawn = (torch.randn(2 * BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    folder, weight_map = Path(out), dict[str, str]()
    folder.mkdir()
    for number, some in enumerate(shape.files()):
        file = f"model-{number:05d}.safetensors"
        weight_map |= dict.fromkeys(some, file)
        tensors = {name: matrix(drawn, size, place) for place, (name, size) in enumerate(some.items(), 100 * number)}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(shape.config))
    ss.Checkpoint.open("demo").tokenizer().save_pretrained(folder)


def matrix(drawn: Any, size: tuple[int, ...], place: int) -> Any:
    """A tensor of that size, of the numbers from some place on."""
    import torch

    count, start = torch.Size(size).numel(), place * 7919 % BLOCK
    rows = [drawn[start : start + min(BLOCK, count - done)] for done in range(0, count, BLOCK)]
    return (torch.cat(rows) if len(size) > 1 else torch.ones(count, dtype=torch.bfloat16)).view(size)


def child_peak(_shape: Shape) -> None:
    """Operations a second of one large product, in bf16 and fp32."""
    import torch

    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.randn(2048, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
        a @ b
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - started)
        found[str(dtype).removeprefix("torch.")] = 2 * 2048 * 4096 * 4096 / min(seconds)
    print(json.dumps(found))


def child_verb(_shape: Shape, *words: str) -> None:
    """A command, its work counted; what it did is the last line."""
    from torch.utils.flop_counter import FlopCounterMode

    from shortstack.cli import main

    sys.argv = ["shortstack", *words]
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            main()
    except SystemExit as ended:
        if ended.code:
            raise
    used = resource.getrusage(resource.RUSAGE_SELF)
    print()
    print(json.dumps({"flop": counter.get_total_flops(), "read": used.ru_inblock * 512}))


CHILDREN = {"make": child_make, "peak": child_peak, "verb": child_verb}


@contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """A group whose processes have so much memory; None where this system lets nobody make one."""
    root = Path("/sys/fs/cgroup/memory")
    group = (root if root.is_dir() else root.parent) / f"shortstack-{os.getpid()}"
    try:
        group.mkdir()
        limit_file(group).write_text(str(limit))
    except OSError as error:
        print(f"no limit: {error}", file=sys.stderr)
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


class Line:
    """The verbs, one after the other, each in the group."""

    def __init__(self, name: str, shape: Shape, work: Path, group: Path | None) -> None:
        self.name, self.shape, self.work, self.group = name, shape, work, group
        self.rows: list[dict[str, Any]] = []
        self.limited = shape.limit

    def child(self, name: str, *words: object, limited: bool = False) -> harness.Ran:
        command = [sys.executable, str(MAIN), "--child", name, self.name, *map(str, words)]
        if limited and self.group:
            command = ["sh", "-c", f'echo $$ > {self.group}/cgroup.procs && exec "$@"', "sh", *command]
        return harness.measured(command, {"HF_HUB_OFFLINE": "1", "SHORTSTACK_CACHE": str(self.work / "cache")})

    def run(self, label: str, *words: object) -> None:
        """Ask what memory a verb needs, where it can be asked, then do it."""
        forget(self.work)
        asked = (*words, "--dry-run", "--json", "-q")
        skipped = words[0] not in ("heal", "evaluate")
        foreseen = None if skipped else told(self.child("verb", *asked, limited=True).output)
        ran = self.child("verb", *words, "-q", limited=True)
        row = {
            "verb": label,
            "seconds": ran.seconds,
            "peak_rss": ran.peak_rss,
            "peak_anonymous": ran.peak_anonymous,
            "limit": self.limited,
            **json.loads(ran.output.strip().splitlines()[-1]),
            "foreseen": foreseen,
            "words": [short(str(word)) for word in words],
        }
        print(f"  {label:12} {ran.seconds:7.1f} s {ran.peak_rss / GB:6.2f} GB", file=sys.stderr)
        self.rows.append(row)

    def whole(self) -> None:
        """Score to heal."""
        at, shape = self.work, self.shape
        text = ("--text", "pydoc")
        self.child("make", at / "model")
        self.run("score bi+ppl", "score", at / "model", "--metric", "bi,ppl", *text, "--samples", 2, "--length", 32,
                 "-o", at / "scores.json")  # fmt: skip
        self.run("plan", "plan", at / "scores.json", "--drop", shape.drop, "--metric", "ppl", "-o", at / "plan.json")
        self.run("prune", "prune", at / "model", "--plan", at / "plan.json", "-o", at / "cut")
        self.run("verify", "verify", at / "cut")
        self.run("prune --repair", "prune", at / "model", "--plan", at / "plan.json", "--repair", *text,
                 "--repair-samples", 16, "--length", 64, "-o", at / "repaired")  # fmt: skip
        shutil.rmtree(at / "model")
        shutil.rmtree(at / "cut")
        self.run("evaluate", "evaluate", at / "repaired", "--perplexity", "pydoc", "--num-samples", 4, "--seq-length", 128,
                 "--no-base")  # fmt: skip
        for options, limit in self.healings():
            self.limit(limit)
            few = [
                "--num-train-epochs",
                1,
                "--max-samples",
                12,
                "--held-out",
                4,
                "--max-length",
                64,
                "--per-device-train-batch-size",
                4,
            ]
            words = [at / "repaired", "--data", "pydoc", *options, *few, "-o", at / "healed"]
            self.run(f"heal {' '.join(options)}", "heal", *words)
            shutil.rmtree(at / "healed")

    def healings(self) -> list[tuple[list[str], int]]:
        """Ways to train, and the memory for each: a layer of the 8B in fp32, its gradients and AdamW's means take 3.5 GB."""
        last = str(self.shape.last)
        ways = [
            (["--method", "lora", "--train-last", last], self.shape.limit),
            (["--train-last", "1", "--no-train-head", "--optim", "adafactor"], self.shape.limit),
            (["--train-last", last, "--no-train-head"], 16 * GB),
        ]
        return ways[:1] if self.name == "tiny" else ways

    def limit(self, nbytes: int) -> None:
        if self.group:
            limit_file(self.group).write_text(str(nbytes))
        self.limited = nbytes


def limit_file(group: Path) -> Path:
    """Where the group's memory is written, by the kind of control groups that there are."""
    return next(group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists())


def forget(folder: Path) -> None:
    """Have the page cache let go of the files."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def told(output: str) -> dict[str, Any]:
    """The object that a verb printed, before the line of its work."""
    text = output[output.index("\n{\n") if "\n{\n" in output else output.index("{") :]
    found: dict[str, Any] = json.JSONDecoder().raw_decode(text.lstrip())[0]
    return found


def row(found: dict[str, Any], peak: float) -> tuple[str, ...]:
    rate, memory = found["flop"] / found["seconds"], (found["foreseen"] or {}).get("memory_bytes")
    return (
        found["verb"],
        f"{found['seconds']:,.1f}",
        f"{found['peak_rss'] / GB:.2f}",
        f"{found['peak_anonymous'] / GB:.2f}",
        "" if memory is None else f"{memory / GB:.2f}",
        f"{found['limit'] / GB:g}",
        f"{found['read'] / GB:.1f}",
        f"{found['flop'] / 1e12:.2f}",
        f"{rate / peak:.0%}" if found["flop"] else "",
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        shape = {**SIZES, "tiny": SMOKE}[sys.argv[3]]
        return CHILDREN[sys.argv[2]](shape, *sys.argv[4:])
    options = harness.parser(__doc__, rounds=1)
    options.add_argument("--size", choices=SIZES, default="8B")
    options.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()))
    chosen = options.parse_args()
    name, shape = ("tiny", SMOKE) if chosen.smoke else (chosen.size, SIZES[chosen.size])
    with (
        tempfile.TemporaryDirectory(prefix="large-", dir=chosen.work_dir) as folder,
        control_group(shape.limit) as group,
    ):
        line = Line(name, shape, Path(folder), group)
        peak = json.loads(line.child("peak").output.splitlines()[-1])
        line.whole()
    data: dict[str, Any] = {
        "machine": harness.machine() | {"limit of memory": "a control group" if group else "none"},
        "versions": harness.versions("shortstack", "torch", "transformers"),
        "command": harness.command_line(),
        "peak": peak,
        "rows": line.rows,
    }
    heading: tuple[str, ...] = (
        *("verb", "wall, s", "peak RSS, GB", "own, GB", "foreseen, GB", "allowed, GB", "read, GB", "work, TFLOP"),
        "of this machine's bf16",
    )
    rows = [row(found, peak["bfloat16"]) for found in line.rows]
    commands = "\n".join(f"    shortstack {shlex.join(found['words'])}" for found in line.rows)
    sections = [__doc__.strip(), f"## {name}", table(heading, rows), f"This machine: {rates(peak)}.", commands]
    harness.save(f"large_{name}", data, sections, smoke=chosen.smoke)
    return None


def rates(peak: dict[str, float]) -> str:
    return ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in peak.items())


def short(word: str) -> str:
    """The last part of a path in the folder that is gone."""
    return Path(word).name if word.startswith("/") else word


if __name__ == "__main__":
    main()
