"""Models that others' own packages make of SmolLM2 without 8 of its 30 layers, beside `shortstack shrink`, on the same text.

    pip install --no-deps --target PEERS optipfair==0.4.2 mergekit==0.1.5 nvidia-modelopt==0.47.0 \\
        immutables omegaconf antlr4-python3-runtime==4.9.3 sentencepiece pulp
    python studies/peers.py PEERS C4_JSONL DOLLY_JSON WIKI_TEXT DATA_DIR FOLDER

Each in a process of its own, others from their own release in the folder PEERS. All learn from the same samples of LENGTH
tokens: C4, Dolly's instructions as the model's template renders them (DOLLY_JSON: in the Alpaca layout), half as much
copying, and drills.

- shortstack: `shrink` in MINUTES minutes, all of its work; it chooses and repairs on the recipe's own text, too
- optipfair: the eight layers of lowest importance on these samples, removed by prune_model; then distill_model by its own
  defaults, three epochs of as many samples as take SECONDS, in the precision in which it loads models
- the paper (Lu et al., arXiv 2411.15558): the last eight layers go; the head and the last three learn from these samples
  for SECONDS, by the authors' rate and batch (the recipe paper-dolly)
- mergekit: a passthrough of our layers, which is all that it does with them; they were chosen to be repaired
- Model-Optimizer: its depth pruning, asked for a model of 22 layers

Judged as in studies/minutes.py on what none of them saw: WIKI_TEXT, LIMIT documents of each task behind its first SKIPPED,
paired with the unpruned model, and ITEMS items of each probe. What fails is shown with the last line that it printed. Writes
studies/peers.md; checkpoints stay in FOLDER.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

import shortstack as ss
from minutes import JUDGED, SKIPPED, TASKS, WINDOWS, save_page, unseen
from shortstack.data import read_examples
from shortstack.healing import config_of
from shortstack.healing.recipes import read_recipe
from shortstack.machine.formats import show_layers
from shortstack.machine.options import given

DROP, LENGTH, BATCH, MINUTES, SECONDS, PILOT, LIMIT, ITEMS, OURS = 8, 128, 4, 15, 800, 16, 500, 50, "shortstack"
PEERS = {
    OURS: OURS,
    "optipfair": "optipfair",
    "paper": OURS,
    "mergekit": "mergekit",
    "modelopt": "nvidia-modelopt",
}


def rendered(path: str, model: ss.Checkpoint, out: Path) -> str:
    """Instructions with their answers as text, by the model's own chat template."""
    tokenizer = model.tokenizer()
    with out.open("w", encoding="utf-8") as file:
        for row in json.loads(Path(path).read_text(encoding="utf-8")):
            asked = "\n".join(part for part in (row["instruction"], row["input"]) if part)
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
            file.write(json.dumps({"text": tokenizer.apply_chat_template(turns, tokenize=False)}) + "\n")
    return str(out)


def windows(source: ss.Checkpoint, data: str) -> list[dict[str, torch.Tensor]]:
    """Batches of token ids [BATCH, LENGTH] of all samples, which are shuffled by a seed."""
    tokenizer = source.tokenizer()
    samples = read_examples(ss.Text(data, None, LENGTH), tokenizer)
    ids = [token for sample in samples for token in (*sample.ids, tokenizer.eos_token_id)]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    return [{"input_ids": some, "attention_mask": torch.ones_like(some)} for some in rows.split(BATCH)]


def shortstack(source: ss.Checkpoint, data: str, out: Path) -> None:
    made = ss.shrink(source, out / OURS, ss.ShrinkOptions(drop=str(DROP), minutes=MINUTES, data=data))
    healing = ss.Checkpoint.open(str(made.output)).record["healing"]
    samples = healing["history"]["steps"] * healing["schedule"]["per_device_train_batch_size"]
    _note(
        out,
        shortstack=f"layers {show_layers(made.plan.removed)}; {made.seconds:.0f} s in all, {samples * LENGTH} tokens",
    )


def optipfair(source: ss.Checkpoint, data: str, out: Path) -> None:
    from optipfair import analyze_layer_importance, distill_model, prune_model  # type: ignore[import-not-found]

    def pruned(layers: Sequence[int]) -> Any:
        return prune_model(source.model(dtype=torch.float32), pruning_type="DEPTH", layer_indices=list(layers))

    def distilled(model: Any, batches: Sequence[Any], epochs: int) -> Any:
        return distill_model(model, source.model(dtype=torch.float32), batches, epochs=epochs)

    batches = windows(source, data)
    importance = analyze_layer_importance(source.model(dtype=torch.float32), batches[:32])
    layers = sorted(sorted(importance, key=importance.__getitem__)[:DROP])
    _saved(pruned(layers), source, out / "optipfair, its choice")
    started = time.perf_counter()
    distilled(pruned(layers), batches[:PILOT], 1)
    fitting = int(SECONDS / (time.perf_counter() - started) * PILOT / 3)
    started = time.perf_counter()
    _saved(distilled(pruned(layers), batches[:fitting], 3), source, out / "optipfair, distilled")
    tokens = f"{3 * min(fitting, len(batches)) * BATCH * LENGTH} tokens"
    _note(out, optipfair=f"layers {show_layers(layers)}; distilled {time.perf_counter() - started:.0f} s, {tokens}")


def paper(source: ss.Checkpoint, data: str, out: Path) -> None:
    recipe = config_of(given(read_recipe("paper-dolly").heal))
    config = replace(recipe, data=data, max_length=LENGTH, held_out=100, minutes=SECONDS / 60)
    plan = ss.select_layers(source, metric="reverse", drop=DROP)
    pruned = ss.prune(source, plan, out / "cut" / "the paper")  # measured once it is healed
    healed = ss.heal(pruned, out / "the paper, healed", config)
    _note(out, paper=f"layers {show_layers(plan.removed)}; healed {healed.seconds:.0f} s, {healed.history.steps} steps")


def mergekit(source: ss.Checkpoint, _: str, out: Path) -> None:
    kept = ss.Checkpoint.open(str(out / OURS)).record["layer_map"].values()
    removed = [layer for layer in range(source.anatomy.layers) if layer not in kept]
    slices = "".join(
        f"  - sources: [{{model: {json.dumps(str(source.directory))}, layer_range: [{start}, {end}]}}]\n"
        for start, end in _ranges(removed, source.anatomy.layers)
    )
    config = out / "mergekit.yaml"
    config.write_text(f"slices:\n{slices}merge_method: passthrough\ndtype: bfloat16\n", encoding="utf-8")
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(config), str(out / "mergekit, our layers")]
    subprocess.run(command, check=True)
    _note(out, mergekit=f"layers {show_layers(removed)}")


def _ranges(removed: Sequence[int], layers: int) -> Iterator[tuple[int, int]]:
    """Runs of kept layers, ends exclusive."""
    kept = [layer for layer in range(layers) if layer not in removed]
    starts = [layer for layer in kept if layer - 1 not in kept]
    ends = [layer + 1 for layer in kept if layer + 1 not in kept]
    return zip(starts, ends, strict=True)


def modelopt(source: ss.Checkpoint, data: str, out: Path) -> None:
    import modelopt.torch.prune as optimizer  # type: ignore[import-not-found]

    ids = windows(source, data)[0]["input_ids"]
    wanted = {"export_config": {"num_layers": source.anatomy.layers - DROP}}
    model = source.model(dtype=torch.float32)
    config = {"forward_loop": lambda module: module(ids)}
    pruned, _ = optimizer.prune(model, [("mcore_minitron", {})], wanted, {"input_ids": ids}, config)
    _saved(pruned, source, out / "Model-Optimizer")


def _saved(model: Any, source: ss.Checkpoint, out: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(out)
    source.tokenizer().save_pretrained(out)


def _note(out: Path, **notes: str) -> None:
    path = out / "notes.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | notes), encoding="utf-8")


def made(name: str, peers: str, data: str, out: Path) -> str | None:
    """Run a peer in a process of its own; the last line it printed, if it failed."""
    command = [sys.executable, str(Path(__file__).resolve()), "make", name, data, str(out)]
    paths = os.pathsep.join(filter(None, (peers, os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True, check=False
    )
    said = ended.stderr.strip().splitlines() or [f"ended with code {ended.returncode} and said nothing"]
    return said[-1] if ended.returncode else None


def page(found: Mapping[str, ss.EvalResult], failed: Mapping[str, str], notes: Mapping[str, str]) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in dict.fromkeys(PEERS.values()))
    base = found["unpruned"]
    kept = [
        f"| {name} | {tasks(each, TASKS[:3]) / tasks(base, TASKS[:3]):.1%} "
        f"| {tasks(each, TASKS[3:]) / tasks(base, TASKS[3:]):.1%} | {each.probes_mean.value / base.probes_mean.value:.1%} |"
        for name, each in found.items()
    ]
    lines = [
        f"# SmolLM2-135M-Instruct without {DROP} of its 30 layers, by others' packages and by shrink\n",
        f"`python studies/peers.py PEERS {' '.join('/'.join(Path(each).parts[-2:]) for each in sys.argv[2:6])}`, "
        f"{versions}, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        "All learnt from the same samples of C4, Dolly, copying and drills; shrink chose and repaired on pydoc and what the",
        "model writes, too, and optipfair has its own precision. The layers of mergekit were chosen to be repaired, which",
        f"it does not do. Perplexity in windows of 256 tokens; accuracy on {LIMIT} documents of each task behind its first",
        f"{SKIPPED}, zero-shot, in brackets the difference from the unpruned model and its standard error, paired;",
        f"{ITEMS} items of each probe.\n",
        *table(found),
        f"\n| kept of the mean of | {', '.join(TASKS[:3])} | lambada | probes |",
        "|---|---|---|---|",
        *kept,
        "",
        *(f"- {name}: {note}" for name, note in notes.items()),
        *(f"- {name} failed: `{line}`" for name, line in failed.items()),
    ]
    return "\n".join(lines) + "\n"


def table(found: Mapping[str, ss.EvalResult]) -> list[str]:
    """Perplexity, tasks and probes of each model, the tasks paired with the unpruned one."""
    base = found["unpruned"]
    columns = [*(Path(text).name for text in base.perplexity), *TASKS, "probes' mean"]
    return [
        f"| model | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
        *(_row(name, each, base) for name, each in found.items()),
        f"\n| probe | {' | '.join(found)} |",
        f"|{'---|' * (len(found) + 1)}",
        *(
            f"| {name} | {' | '.join(f'{each.probes[name].value:.2f}' for each in found.values())} |"
            for name in base.probes
        ),
    ]


def _row(name: str, found: ss.EvalResult, base: ss.EvalResult) -> str:
    cells = [f"{each.value:.4g}" for each in found.perplexity.values()]
    paired = found.compare_to(base).against if found is not base else {}
    for task in TASKS:
        difference = f" ({paired[task].difference:+.3f} ± {paired[task].stderr:.3f})" if paired else ""
        cells.append(f"{found.tasks[task].value:.3f}{difference}")
    mean = f"{found.probes_mean.value:.3f} ± {found.probes_mean.error:.3f}"
    return f"| {name} | {' | '.join([*cells, mean])} |"


def tasks(found: ss.EvalResult, names: Sequence[str]) -> float:
    """The mean accuracy over tasks."""
    return sum(found.tasks[name].value for name in names) / len(names)


def evaluations(models: Mapping[str, ss.Checkpoint], wiki: str, data: str) -> dict[str, ss.EvalResult]:
    texts = {"perplexity": wiki, "seq_length": 256, "num_samples": WINDOWS}
    tasks = {"tasks": TASKS, "limit": LIMIT, "data_dir": data}
    config = ss.EvalConfig(**texts, **tasks, probes=True, probe_items=ITEMS)
    return {name: ss.evaluate(model, config, compute=ss.Compute(seed=JUDGED)) for name, model in models.items()}


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    peers, c4, dolly, wiki, documents, folder = sys.argv[1:]
    sys.path.append(peers)  # for the versions
    out, source = Path(folder), ss.Checkpoint.open("demo")
    out.mkdir(exist_ok=True)
    data = f"{c4},{rendered(dolly, source, out / 'dolly.jsonl')},copying=0.5,drills"
    failed = {name: line for name in PEERS if (line := made(name, peers, data, out))}
    places = sorted((path.parent for path in out.glob("*/config.json")), key=lambda place: (place.name != OURS, place))
    models = {"unpruned": source, **{place.name: ss.Checkpoint.open(str(place)) for place in places}}
    found = evaluations(models, wiki, unseen(documents, out / "tasks", SKIPPED))
    notes = json.loads((out / "notes.json").read_text(encoding="utf-8"))
    save_page(Path(__file__).with_suffix(".md"), page(found, failed, notes))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        _, _, peer, text, place = sys.argv
        globals()[peer](ss.Checkpoint.open("demo"), text, Path(place))
    else:
        main()
