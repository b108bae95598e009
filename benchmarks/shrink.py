"""Whether `shrink` ends within its minutes, also where other work begins in the middle, and what comes out.

    python benchmarks/shrink.py                                  # all, 13 hours with nothing beside
    python benchmarks/shrink.py --model demo --drop 8 --minutes 15
    python benchmarks/shrink.py --model demo --drop 4 --minutes 5 --load   # two busy processes begin in the middle
    python benchmarks/shrink.py --smoke                          # a tiny model, a minute

The larger model has the shape of Qwen2.5-0.5B (24 layers of width 896, vocabulary 151,936), random weights, and SmolLM2's
tokenizer: its time means something, its quality does not. The cache is empty at the start of each run, so that the model
writes its texts again. Each run is added to results/shrink_<cpu>_<date>.json, and the page beside it is written anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import harness

MODELS = (("demo", "4"), ("demo", "8"), ("0.5B", "25%"))
RUNS = [
    (model, drop, minutes, load) for minutes in (3, 5, 15, 40, 60) for model, drop in MODELS for load in (False, True)
]
AIM = 0.10  # of the minutes, beyond them
SMOKE = ("tiny", "2", 0.8, True)
BUSY = "import sys, time\ntime.sleep(float(sys.argv[1]))\nwhile True: pass"


def shaped(folder: Path, **shape: Any) -> Path:
    """A model with random weights and the demo's tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    import shortstack as ss

    torch.manual_seed(0)
    tokenizer = ss.Checkpoint.open("demo").tokenizer()
    config = Qwen2Config(**shape, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def model_at(name: str, folder: Path) -> str:
    if name == "0.5B":
        shape = {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
        return str(shaped(folder / name, **shape, num_attention_heads=14, num_key_value_heads=2))
    if name == "tiny":
        shape = {"vocab_size": 49_152, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6}
        return str(shaped(folder / name, **shape, num_attention_heads=4, num_key_value_heads=4))
    import shortstack as ss

    return str(ss.Checkpoint.open(name).directory)  # read from the package once, outside of what is measured


@contextmanager
def beside(seconds: float, *, load: bool) -> Iterator[None]:
    """With load, as many busy processes as there are cores begin after so many seconds."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY, str(seconds)]) for _ in range(load * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measured(name: str, drop: str, minutes: float, folder: Path, *, load: bool) -> dict[str, Any]:
    """One run, in this process."""
    import shortstack as ss

    model, cache = model_at(name, folder), folder / "cache"
    os.environ["SHORTSTACK_CACHE"] = str(cache)
    items = 2 if name == "tiny" else ss.ShrinkOptions.probe_items
    options = ss.ShrinkOptions(drop=drop, minutes=minutes, probe_items=items)
    started = time.perf_counter()
    with ss.progress_bar() as progress, beside(30 * minutes, load=load):
        made = ss.shrink(model, folder / "out", options, progress=progress)
    row = {
        "model": name,
        "drop": drop,
        "minutes": minutes,
        "load": load,
        "seconds": time.perf_counter() - started,
        "left_out": list(made.left_out),
        "verdict": made.verdict.replace(str(folder), ""),
        "removed": list(made.plan.removed),
        "steps": made.healing.history.steps if made.healing else 0,
        "right": {name: _right(each) for name, each in (("base", made.base), ("last", made.last))},
        "perplexity": {
            name: each.perplexity["pydoc"].value for name, each in (("base", made.base), ("last", made.last))
        },
    }
    shutil.rmtree(folder / "out")
    shutil.rmtree(cache, ignore_errors=True)
    return row


def _right(evaluation: Any) -> float:
    return evaluation.probes_mean.value if evaluation.probes else float("nan")  # a late run leaves them out


def page(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The results as Markdown."""
    cells = []
    for row in rows:
        over = row["seconds"] / (60 * row["minutes"]) - 1
        kept = "-" if row["model"] == "0.5B" else f"{row['right']['last']:.3f} of {row['right']['base']:.3f}"
        times = "-" if row["model"] == "0.5B" else f"{row['perplexity']['last'] / row['perplexity']['base']:.2f}"
        cells.append(
            [
                f"{row['model']} without {row['drop']}{', load from the middle on' if row['load'] else ''}",
                f"{row['minutes']:g}",
                f"{row['seconds']:.0f} s",
                f"{over:+.0%}, {'met' if over <= AIM else '**missed**'}",
                kept,
                times,
                str(row["steps"]),
                "; ".join(row["left_out"]) or "nothing",
            ]
        )
    head = ["run", "--minutes", "took", f"over (aim {AIM:.0%})", "probes right", "perplexity", "steps of healing"]
    return [harness.table([*head, "less of"], cells), "Perplexity is on pydoc, in multiples of the unpruned model's."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "0.5B"))
    parser.add_argument("--drop", default="25%")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--load", action="store_true", help="other work begins in the middle")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, and nothing is kept")
    asked = parser.parse_args()
    runs = [(asked.model, asked.drop, asked.minutes, asked.load)] if asked.model else [SMOKE] if asked.smoke else RUNS
    name = f"shrink_{harness.machine_slug()}_{date.today().isoformat()}.json"
    before = harness.RESULTS / name
    rows = json.loads(before.read_text(encoding="utf-8"))["rows"] if before.exists() and not asked.smoke else []
    for model, drop, minutes, load in runs:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(model, drop, minutes, Path(folder), load=load))
        known = {"machine": harness.machine(), "versions": harness.versions("torch", "transformers", "peft", "torchao")}
        harness.save(
            "shrink", {**known, "command": harness.command_line(), "rows": rows}, page(rows), smoke=asked.smoke
        )


if __name__ == "__main__":
    main()
