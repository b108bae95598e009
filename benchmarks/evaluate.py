"""How long tasks take beside lm-evaluation-harness alone, on SmolLM2-135M, fp32, one thread, the same documents.

`python benchmarks/evaluate.py --data DIR --limit 50`, with piqa, arc_easy and hellaswag in DIR as docs/evaluate.md lays out.

Prompts, metrics and the loaded model are the same objects for all:

    bare      the harness's own HFLM: logits of every token, every choice with its context, batches of 16
    16        shortstack: the head only where a token is scored, a shared context once; batches of 16
    auto      the same, batches by their tokens

Contenders take turns. Other processes may run beside: seconds of CPU are what the ratios are of; wall seconds are shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.models.huggingface import HFLM
from transformers.utils.logging import disable_progress_bar

import harness as bench
from harness import median, ratios, spread, table, verdict
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.evaluation import EvalConfig, load_harness
from shortstack.evaluation.harness import HarnessModel

AIM = 1.3
BATCH = 16
Outcomes = list[float]
Clocks = dict[str, list[float]]


def by_harness(model: Any, loaded: Any, limit: int) -> Outcomes:
    """Return what the harness finds with that model, document by document."""
    with load_harness().hushed():
        found = run_harness(model, {"tasks": dict(loaded.tasks), "groups": {}}, limit=limit, bootstrap_iters=0)
    return [float(sample["acc"]) for sample in found["samples"][loaded.name]]


def contest(contenders: dict[str, Callable[[], Outcomes]], rounds: int, title: str) -> tuple[Clocks, Clocks]:
    """CPU and wall seconds of every run; all must give the same outcomes."""
    cpu: Clocks = {name: [] for name in contenders}
    wall: Clocks = {name: [] for name in contenders}
    outcomes: dict[str, Outcomes] = {}
    for turn in range(rounds):
        for name in bench.rotated(list(contenders), turn):
            started, used = time.perf_counter(), time.process_time()
            outcomes[name] = contenders[name]()
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - used)
            print(f"  {title:10} {name:5} {cpu[name][-1]:7.2f} s of CPU, {wall[name][-1]:7.2f} s", file=sys.stderr)
    assert all(found == outcomes["bare"] for found in outcomes.values()), f"{title}: outcomes differ"
    return cpu, wall


def rows(cpu: dict[str, Clocks], wall: dict[str, Clocks]) -> list[tuple[str, ...]]:
    found = []
    for task, clocks in cpu.items():
        for name, seconds in clocks.items():
            ratio = ratios(clocks["bare"], seconds)
            met = "" if name == "bare" else verdict(median(ratio) >= AIM)
            found.append((task, name, spread(seconds, 1), spread(wall[task][name], 1), spread(ratio), met))
    return found


def together(cpu: dict[str, Clocks]) -> dict[str, Clocks]:
    """The tasks' sums, round by round."""
    names = next(iter(cpu.values()))
    sums = {
        name: [sum(some) for some in zip(*(clocks[name] for clocks in cpu.values()), strict=True)] for name in names
    }
    return cpu | {"all": sums}


def main() -> None:
    options = bench.parser(__doc__, rounds=1)
    options.add_argument("--data", type=Path, help="a folder of task data; not for --smoke, which makes its own")
    options.add_argument("--limit", type=int, default=50)
    chosen = options.parse_args()
    if not chosen.smoke and not chosen.data:
        options.error("--data is needed")
    with tempfile.TemporaryDirectory() as folder:
        run(chosen, Path(folder))


def made_data(folder: Path) -> Path:
    """The tests' documents."""
    sys.path.insert(0, str(bench.TESTS))
    from documents import data_folder

    return data_folder(folder)


def run(chosen: argparse.Namespace, folder: Path) -> None:
    disable_progress_bar()
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(bench.tiny(folder / "tiny") if chosen.smoke else "demo")
    decoder, tokenizer = Decoder.load(checkpoint, dtype=torch.float32), checkpoint.tokenizer()
    documents = made_data(folder / "data") if chosen.smoke else chosen.data
    tasks = load_harness().load(EvalConfig(tasks="piqa,arc_easy,hellaswag", data_dir=documents))
    models = {
        "bare": HFLM(pretrained=decoder.model, tokenizer=tokenizer, batch_size=BATCH),
        "16": HarnessModel(decoder, tokenizer, batch=BATCH),
        "auto": HarnessModel(decoder, tokenizer),
    }
    by_harness(models["auto"], tasks[0], 2)  # kernels are chosen and memory is mapped before any clock runs
    data: dict[str, Any] = {
        "machine": bench.machine() | {"torch threads": 1},
        "versions": bench.versions("shortstack", "torch", "transformers", "lm-eval"),
        "command": bench.command_line(),
        "documents": chosen.limit,
    }
    cpu: dict[str, Clocks] = {}
    wall: dict[str, Clocks] = {}
    for loaded in tasks:
        asked = {
            name: lambda model=model, loaded=loaded: by_harness(model, loaded, chosen.limit)
            for name, model in models.items()
        }
        cpu[loaded.name], wall[loaded.name] = contest(asked, chosen.rounds, loaded.name)
    data |= {"cpu": cpu, "wall": wall}
    heading = ("task", "contender", "CPU, s", "wall, s", "times as fast as bare, CPU", "")
    sections = [
        f"One model, {chosen.limit} documents of each task; aim {AIM:g} x. Outcomes of every document are the same.",
        table(heading, rows(together(cpu), together(wall))),
    ]
    bench.save("evaluate", data, sections, smoke=chosen.smoke)


if __name__ == "__main__":
    main()
