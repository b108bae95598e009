"""Every metric beside its naive form: tests/naive.py, written from the papers' formulas with whole models and whole logits.

Tiny random models of several architectures, 6 x 10 tokens, float32; the largest difference of any layer's score, or of any
block of three layers, over the largest score in size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

import harness
from harness import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import naive
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.machine.device import Compute
from shortstack.scoring import score
from zoo import tiny

TYPES = ("llama", "qwen2", "gemma2", "gpt2", "opt", "gpt_neox", "mixtral")
WINDOW = 3


def apart(found: Sequence[float], expected: Sequence[float]) -> float:
    finite = [(a, b) for a, b in zip(found, expected, strict=True) if abs(b) != float("inf")]
    return max(abs(a - b) for a, b in finite) / max(abs(b) for _, b in finite)


def main() -> None:
    smoke = harness.parser(__doc__, rounds=1).parse_args().smoke
    disable_progress_bar()
    types = TYPES[:1] if smoke else TYPES
    ids = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
    differences: dict[str, dict[str, float]] = {}
    for model_type in types:
        checkpoint = Checkpoint.open(tiny(model_type))
        names = list(naive.METRICS)
        found = score(
            checkpoint, Tokens(ids, "random", False, 0), metrics=names, window=WINDOW, compute=Compute(dtype="float32")
        )
        for name, naively in naive.METRICS.items():
            expected = naively(checkpoint.directory, ids)
            differences.setdefault(name, {})[model_type] = apart(found.scores[name], expected)
        for name, naively in naive.WINDOWS.items():
            expected = naively(checkpoint.directory, ids, WINDOW)
            differences.setdefault(f"{name}, blocks", {})[model_type] = apart(found.blocks[name], expected)
    rows = [(name, *(f"{by_type[each]:.0e}" for each in types)) for name, by_type in differences.items()]
    data: dict[str, Any] = {
        "machine": harness.machine(),
        "versions": harness.versions("shortstack", "torch", "transformers"),
        "command": harness.command_line(),
        "differences": differences,
    }
    harness.save("parity", data, [__doc__.strip(), table(("metric", *types), rows)], smoke=smoke)


if __name__ == "__main__":
    main()
