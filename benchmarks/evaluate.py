"""How long tasks take beside lm-evaluation-harness alone, on SmolLM2-135M, fp32, one thread, the same documents.

`python benchmarks/evaluate.py --data DIR --limit 50`, with piqa, arc_easy and hellaswag in DIR as docs/evaluate.md lays out.

Part one, one model; prompts, metrics and the loaded model are the same objects for all:

    bare      the harness's own HFLM: logits of every token, every choice with its context, batches of 16
    16        shortstack: the head only where a token is scored, a shared context once; batches of 16
    auto      the same, batches by their tokens

Part two, the tail cut at eight depths (none to seven layers), piqa and arc_easy:

    bare      the harness's HFLM on each of the eight models, one after the other
    walk      shortstack: one walk that answers for all eight, as `depth-curve --task` takes

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
from torch import nn
from transformers.utils.logging import disable_progress_bar

import harness as bench
from harness import median, ratios, spread, table, verdict
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.likelihoods import answers
from shortstack.evaluation import load_harness
from shortstack.evaluation.harness import HarnessModel
from shortstack.scoring.depths import tail_cuts

ONE_AIM, SWEEP_AIM = 1.3, 4.0
BATCH, DEPTHS = 16, 8
Outcomes = list[float]
Clocks = dict[str, list[float]]


def by_harness(model: Any, loaded: Any, limit: int) -> Outcomes:
    """Return what the harness finds with that model, document by document."""
    with load_harness().hushed():
        found = run_harness(model, {"tasks": dict(loaded.tasks), "groups": {}}, limit=limit, bootstrap_iters=0)
    return [float(sample["acc"]) for sample in found["samples"][loaded.name]]


def at_every_depth(decoder: Decoder, tokenizer: Any, loaded: Any, limit: int) -> Outcomes:
    """The harness on the model without its last layers, none to seven."""
    layers, found = decoder.model.model.layers, list[float]()
    for gone in range(DEPTHS):
        decoder.model.model.layers = nn.ModuleList(layers[: len(layers) - gone])
        decoder.model.config.num_hidden_layers = len(layers) - gone
        found += by_harness(HFLM(pretrained=decoder.model, tokenizer=tokenizer, batch_size=BATCH), loaded, limit)
    decoder.model.model.layers, decoder.model.config.num_hidden_layers = layers, len(layers)
    return found


def by_walk(decoder: Decoder, tokenizer: Any, loaded: Any, limit: int) -> Outcomes:
    routes = tail_cuts(len(decoder.layers))[:DEPTHS]
    found = answers(decoder, load_harness().questions(loaded, tokenizer, limit), routes)
    return [float(correct) for route in routes for correct in found[route].correct]


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


def rows(cpu: dict[str, Clocks], wall: dict[str, Clocks], aim: float) -> list[tuple[str, ...]]:
    found = []
    for task, clocks in cpu.items():
        for name, seconds in clocks.items():
            ratio = ratios(clocks["bare"], seconds)
            met = "" if name == "bare" else verdict(median(ratio) >= aim)
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
    tasks = load_harness().load(["piqa", "arc_easy", "hellaswag"], data=documents)
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
    one: tuple[dict[str, Clocks], dict[str, Clocks]] = ({}, {})
    many: tuple[dict[str, Clocks], dict[str, Clocks]] = ({}, {})
    for loaded in tasks:
        asked = {
            name: lambda model=model, loaded=loaded: by_harness(model, loaded, chosen.limit)
            for name, model in models.items()
        }
        one[0][loaded.name], one[1][loaded.name] = contest(asked, chosen.rounds, loaded.name)
    for loaded in tasks[:2]:
        asked = {
            name: lambda run=run, loaded=loaded: run(decoder, tokenizer, loaded, chosen.limit)
            for name, run in {"bare": at_every_depth, "walk": by_walk}.items()
        }
        many[0][loaded.name], many[1][loaded.name] = contest(asked, chosen.rounds, f"{loaded.name} x{DEPTHS}")
    data |= {"one": {"cpu": one[0], "wall": one[1]}, "depths": {"cpu": many[0], "wall": many[1]}}
    heading = ("task", "contender", "CPU, s", "wall, s", "times as fast as bare, CPU", "")
    sections = [
        f"One model, {chosen.limit} documents of each task; aim {ONE_AIM:g} x. Outcomes of every document are the same.",
        table(heading, rows(together(one[0]), together(one[1]), ONE_AIM)),
        f"Eight depths; aim {SWEEP_AIM:g} x. Outcomes at every depth are the same.",
        table(heading, rows(together(many[0]), together(many[1]), SWEEP_AIM)),
    ]
    bench.save("evaluate", data, sections, smoke=chosen.smoke)


if __name__ == "__main__":
    main()
