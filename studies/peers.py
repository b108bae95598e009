"""Models that others' own packages make of SmolLM2 without 8 of its 30 layers, beside the recipe `best`.

    pip install --no-deps --target PEERS optipfair==0.4.2 mergekit==0.1.5 nvidia-modelopt==0.47.0 \\
        immutables omegaconf antlr4-python3-runtime==4.9.3 sentencepiece pulp
    python studies/peers.py PEERS OURS C4_JSONL DOLLY_JSON WIKI_TEXT DATA_DIR FOLDER

OURS: what studies/best.py left as 8-healed. By the same measures, each peer in a process of its own, from its own release in
the folder PEERS. The data are those that each takes: `best` also learns copying, which the program makes and one of the
probes asks for:

- optipfair: the eight layers of lowest importance on C4, removed by prune_model; then distill_model by its own defaults on
  C4 and Dolly, three epochs of as many samples as take SECONDS, in the precision in which it loads models
- the paper (Lu et al., arXiv 2411.15558): the last eight layers go; the head and the last three learn from Dolly by the
  authors' rate, batch and epochs (recipes/paper-dolly.yaml), on the 1,000 samples of DOLLY_JSON
- mergekit: a passthrough of our layers, which is all that it does with them; they were chosen for their loss once repaired
- Model-Optimizer: its depth pruning, asked for a model of 22 layers

What fails is shown with the last line that it printed. Writes studies/peers.md; checkpoints stay in FOLDER.
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

import best
import shortstack as ss
from shortstack.healing.recipes import read_recipe
from shortstack.healing.task import task_of
from shortstack.machine.formats import show_layers

DROP, LENGTH, BATCH, SECONDS, PILOT = 8, 128, 4, 800, 16
PEERS = {"optipfair": "optipfair", "paper": "shortstack", "mergekit": "mergekit", "modelopt": "nvidia-modelopt"}


def windows(source: ss.Checkpoint, texts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    """Batches of token ids [BATCH, LENGTH] of all texts, mixed by a seed."""
    tokenizer, ids = source.tokenizer(), list[int]()
    for text in texts:
        for line in Path(text).read_text(encoding="utf-8").splitlines():
            ids += [*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(best.SEED))]
    return [{"input_ids": some, "attention_mask": torch.ones_like(some)} for some in rows.split(BATCH)]


def optipfair(source: ss.Checkpoint, texts: Sequence[str], out: Path) -> None:
    from optipfair import analyze_layer_importance, distill_model, prune_model  # type: ignore[import-not-found]

    def pruned(layers: Sequence[int]) -> Any:
        return prune_model(source.model(dtype=torch.float32), pruning_type="DEPTH", layer_indices=list(layers))

    def distilled(model: Any, batches: Sequence[Any], epochs: int) -> Any:
        return distill_model(model, source.model(dtype=torch.float32), batches, epochs=epochs)

    importance = analyze_layer_importance(source.model(dtype=torch.float32), windows(source, texts[:1])[:32])
    layers = sorted(sorted(importance, key=importance.__getitem__)[:DROP])
    _saved(pruned(layers), source, out / "optipfair, its choice")
    batches = windows(source, texts[:2])
    started = time.perf_counter()
    distilled(pruned(layers), batches[:PILOT], 1)
    fitting = int(SECONDS / (time.perf_counter() - started) * PILOT / 3)
    started = time.perf_counter()
    _saved(distilled(pruned(layers), batches[:fitting], 3), source, out / "optipfair, distilled")
    tokens = f"{3 * min(fitting, len(batches)) * BATCH * LENGTH} tokens"
    _note(out, optipfair=f"layers {show_layers(layers)}; distilled {time.perf_counter() - started:.0f} s, {tokens}")


def paper(source: ss.Checkpoint, texts: Sequence[str], out: Path) -> None:
    task = task_of(read_recipe("paper-dolly").heal.given)
    data = replace(task.data, data=texts[2], held_out=100)
    plan = ss.choose(source.anatomy.layers, ss.Choice("reverse", DROP)).plan
    started = time.perf_counter()
    pruned = ss.prune(source, plan, out / "cut" / "the paper")  # measured once it is healed
    ss.heal(pruned, out / "the paper, healed", replace(task, data=data))
    _note(out, paper=f"layers {show_layers(plan.removed)}; healed {time.perf_counter() - started:.0f} s")


def mergekit(source: ss.Checkpoint, texts: Sequence[str], out: Path) -> None:
    removed = json.loads(texts[3])
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


def modelopt(source: ss.Checkpoint, texts: Sequence[str], out: Path) -> None:
    import modelopt.torch.prune as optimizer  # type: ignore[import-not-found]

    ids = windows(source, texts[:1])[0]["input_ids"]
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


def made(name: str, peers: str, given: Sequence[str], out: Path) -> str | None:
    """Run a peer in a process of its own; the last line it printed, if it failed."""
    command = [sys.executable, str(Path(__file__).resolve()), "make", name, *given, str(out)]
    paths = os.pathsep.join(filter(None, (peers, os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True, check=False
    )
    return ended.stderr.strip().splitlines()[-1] if ended.returncode else None


def page(found: Mapping[str, ss.Evaluation], failed: Mapping[str, str], notes: Mapping[str, str]) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PEERS.values() if package != "shortstack")
    base = found["unpruned"]
    kept = [
        f"| {name} | {best.kept(each, base, best.FIRST_THREE):.1%} | {best.kept(each, base, best.TASKS[3:]):.1%} "
        f"| {best.probes(each) / best.probes(base):.1%} |"
        for name, each in found.items()
    ]
    lines = [
        f"# SmolLM2-135M-Instruct without {DROP} of its 30 layers, by others' packages and by the recipe best\n",
        f"`python studies/peers.py PEERS OURS {' '.join('/'.join(Path(each).parts[-2:]) for each in sys.argv[3:7])}`, "
        f"{versions}, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        "Measured as [best](best.md) is. What is not the same for all: ours learns C4, Dolly and copying, which one of the",
        "seven probes asks for, optipfair C4 and Dolly in its own precision, the paper's recipe Dolly alone; mergekit's",
        "layers were chosen for their loss once they are repaired.\n",
        *best.table(found),
        "\n| model | kept of the first three tasks' mean | of lambada | of the probes' mean |",
        "|---|---|---|---|",
        *kept,
        "",
        *(f"- {name}: {note}" for name, note in notes.items()),
        *(f"- {name} failed: `{line}`" for name, line in failed.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    peers, ours, c4, dolly, wiki, data, folder = sys.argv[1:]
    sys.path.append(peers)  # for the versions
    out, source = Path(folder), ss.Checkpoint.open("demo")
    out.mkdir(exist_ok=True)
    kept = ss.Checkpoint.open(ours).record["layer_map"].values()
    removed = [layer for layer in range(source.anatomy.layers) if layer not in kept]
    given = [c4, best.rendered(dolly, source, out / "dolly.jsonl"), dolly, json.dumps(removed)]
    failed = {name: line for name in PEERS if (line := made(name, peers, given, out))}
    places = sorted(path.parent for path in out.glob("*/config.json"))
    models = {"unpruned": source, "best.yaml": ss.Checkpoint.open(ours)}
    models |= {place.name: ss.Checkpoint.open(str(place)) for place in places}
    found = best.evaluations(models, wiki, best.unseen(data, Path(folder) / "tasks"))
    notes = json.loads((out / "notes.json").read_text(encoding="utf-8"))
    Path(__file__).with_suffix(".md").write_text(page(found, failed, notes), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        _, _, peer, *text_arguments, place = sys.argv
        globals()[peer](ss.Checkpoint.open("demo"), text_arguments, Path(place))
    else:
        main()
