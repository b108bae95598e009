"""How much of SmolLM2 comes back by recipes/best.yaml after 8 of its 30 layers are gone, and how long does that take?

    python studies/best.py C4_JSONL WIKI_TEXT DATA_DIR [FOLDER]

The recipe was chosen by perplexity on pydoc and on WikiText2's test pages (studies/healing.md). Here it runs on 1,000
samples of C4 and pydoc, and is judged on what that choice did not go by: WIKI_TEXT, and the first documents of four tasks,
read from DATA_DIR (laid out as docs/evaluate.md says), paired with the unpruned model. Writes studies/best.md; the
checkpoints stay in FOLDER, if one is named.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import transformers

import shortstack as ss
from healing import mixed
from shortstack.healing.options import task_of
from shortstack.healing.recipes import read_recipe
from shortstack.planning import Choice
from shortstack.planning.layer_sets import show_layers

SAMPLES, LIMIT = 1000, 500
TASKS = ("piqa", "arc_easy", "hellaswag", "lambada_openai")
FIRST_THREE = TASKS[:3]


def line(source: ss.Checkpoint, data: str, folder: Path) -> tuple[ss.Plan, dict[str, Path], dict[str, float]]:
    """Search, repair, prune and heal: the layers, the checkpoints, and the seconds of each step."""
    recipe = task_of(read_recipe("best").heal.given)
    learnt = replace(recipe.training_data, data=data, max_samples=SAMPLES)
    tokenizer, clock = source.tokenizer(), [time.perf_counter()]
    chosen = ss.select(source, ss.Tokens.read("pydoc", tokenizer, samples=32), Choice(drop=8))
    clock.append(time.perf_counter())
    fit = ss.Tokens.read(data, tokenizer, samples=None, length=learnt.max_length - 8)
    found = ss.repair(source, frozenset(chosen.removed), replace(fit, ids=fit.ids[:256]))
    pruned = ss.prune(source, chosen, folder / "repaired", repair=found)
    clock.append(time.perf_counter())
    ss.heal(pruned, folder / "healed", replace(recipe, data=learnt))
    clock.append(time.perf_counter())
    steps = ("search", "repair and prune", "heal")
    seconds = {name: after - before for name, before, after in zip(steps, clock, clock[1:], strict=False)}
    return chosen, {"repaired": folder / "repaired", "healed": folder / "healed"}, seconds


def page(chosen: ss.Plan, seconds: Mapping[str, float], found: Mapping[str, ss.Evaluation]) -> str:
    command = " ".join(["python studies/best.py", *("/".join(Path(each).parts[-2:]) for each in sys.argv[1:])])
    timed = (
        ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()) + f"; together {sum(seconds.values()):.0f}"
    )
    kept, words = _kept(found, FIRST_THREE), _kept(found, TASKS[3:])
    lines = [
        "# SmolLM2-135M-Instruct without 8 of its 30 layers, by recipes/best.yaml\n",
        f"`{command}`, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"Layers {show_layers(chosen.removed)}; {SAMPLES} samples of C4 and pydoc. Seconds, "
        f"threads {torch.get_num_threads()}: {timed}.",
        f"Perplexity in windows of 256 tokens; accuracy on the first {LIMIT} documents of each task, zero-shot; in brackets "
        "the difference from the unpruned model and its standard error, paired.\n",
        f"| model | {' | '.join(Path(text).name for text in found['unpruned'].perplexity)} | {' | '.join(TASKS)} |",
        f"|{'---|' * (len(TASKS) + 1 + len(found['unpruned'].perplexity))}",
        *(_row(name, each, found["unpruned"]) for name, each in found.items()),
        f"\nOf the unpruned model's mean over {', '.join(FIRST_THREE)} the healed one keeps {kept:.1%}, of "
        f"{TASKS[3]} {words:.1%}. Aims: 95 % and half, within 15 minutes on two cores.",
        "\nThe plan is the searched one alone; `shortstack shrink --recipe best` compares five and takes longer.",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, found: ss.Evaluation, base: ss.Evaluation) -> str:
    cells = [f"{each.value:.4g}" for each in found.perplexity.values()]
    paired = ss.compared(found, base).against if found is not base else {}
    for task in TASKS:
        difference = f" ({paired[task].difference:+.3f} ± {paired[task].stderr:.3f})" if paired else ""
        cells.append(f"{found.tasks[task].value:.3f}{difference}")
    return f"| {name} | {' | '.join(cells)} |"


def _kept(found: Mapping[str, ss.Evaluation], tasks: tuple[str, ...]) -> float:
    healed, base = (sum(found[name].tasks[task].value for task in tasks) for name in ("healed", "unpruned"))
    return healed / base


def main() -> None:
    c4, wiki, data, *kept = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        study(c4, wiki, data, Path(*kept or [folder]))


def study(c4: str, wiki: str, data: str, folder: Path) -> None:
    source = ss.Checkpoint.open("demo")
    chosen, places, seconds = line(source, mixed(c4, source.tokenizer(), folder / "mixed.jsonl"), folder)
    print(seconds, flush=True)
    models = {"unpruned": source, **{name: ss.Checkpoint.open(str(place)) for name, place in places.items()}}
    text, collapse = ss.EvaluationText(["pydoc", wiki], 256, samples=40), ss.GenerationChecks(collapse_check=True)
    asked = ss.Tasks(TASKS, limit=LIMIT, data_dir=data)
    found = {name: ss.evaluate(model, text=text, tasks=asked, generation=collapse) for name, model in models.items()}
    Path(__file__).with_suffix(".md").write_text(page(chosen, seconds, found), encoding="utf-8")


if __name__ == "__main__":
    main()
