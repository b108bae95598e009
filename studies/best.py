"""How much of SmolLM2 comes back by the recipe `best` after some of its 30 layers are gone, and how long does that take?

    python studies/best.py 8,4 C4_JSONL DOLLY_JSON WIKI_TEXT DATA_DIR [FOLDER]

The first argument is how many layers go, one model for each number. DOLLY_JSON: instructions in the Alpaca layout.

The recipe was chosen on other data (studies/recipe.md): questions of piqa's training set and of arc_easy's validation set,
other pages, probes of another seed. Three earlier runs, between which it changed, were judged on the first SKIPPED
documents of each task; so this one, of the recipe as it stayed, has documents that none of them saw, and other seeds for
itself, the probes and the windows. Layers are chosen, kept ones refitted, and what is left healed on C4, on Dolly's
instructions as the model's template renders them, and on copying, of which healing has half as much. It is judged on
WIKI_TEXT and on four tasks, read from DATA_DIR (laid out as docs/evaluate.md says), paired with the unpruned model, and on
probes of generation. Writes studies/best.md; the checkpoints stay in FOLDER, if one is named.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers

import shortstack as ss
from shortstack.decoder import calibration_tokens
from shortstack.evaluation.suites import TASKS as KNOWN
from shortstack.healing.recipes import read_recipe
from shortstack.healing.task import task_of
from shortstack.machine.formats import show_layers
from shortstack.planning import Choice, choose

SEED, WINDOWS, REPAIR_WINDOWS, LIMIT = 5, 16, 256, 500
JUDGED, SKIPPED = 11, 500  # the seed of probes and windows; how many documents of each task earlier runs were judged on
SAMPLES = {8: 2100, 4: 1700}  # by how many layers go: as many as take 15 minutes with all before them
TASKS = ("piqa", "arc_easy", "hellaswag", "lambada_openai")
FIRST_THREE = TASKS[:3]
AIMS = {
    8: (95, 60, 60),
    4: (98, 85, 85),
}  # per cent kept of the first three tasks' mean, of lambada, of the probes' mean
STEPS = ("choose", "repair and prune", "heal")


def rendered(path: str, model: ss.Checkpoint, out: Path) -> str:
    """Instructions with their answers as text, by the model's own chat template."""
    tokenizer = model.tokenizer()
    with out.open("w", encoding="utf-8") as file:
        for row in json.loads(Path(path).read_text(encoding="utf-8")):
            asked = "\n".join(part for part in (row["instruction"], row["input"]) if part)
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
            file.write(json.dumps({"text": tokenizer.apply_chat_template(turns, tokenize=False)}) + "\n")
    return str(out)


def line(
    source: ss.Checkpoint, texts: tuple[str, str], folder: Path, drop: int
) -> tuple[ss.Plan, ss.Checkpoint, dict[str, float]]:
    """Choose, repair, prune and heal: the layers, the healed checkpoint, and the seconds of each step."""
    recipe, compute, clock = read_recipe("best"), ss.Compute(seed=SEED), [time.perf_counter()]
    task, (c4, dolly) = replace(task_of(recipe.heal.given), teacher=source), texts
    learnt = replace(task.data, data=f"{c4},{dolly},copying=0.5", max_samples=SAMPLES[drop])
    text = ss.CalibrationText(f"{c4},{dolly},copying", WINDOWS)
    given = {name: value for name, value in recipe.plan.given.items() if name not in ("repair", "drop")}
    plan = choose(source, Choice(drop=drop, **given), text, compute=compute).plan
    clock.append(time.perf_counter())
    fit = calibration_tokens(source, text.of_all(REPAIR_WINDOWS), compute=compute)
    repaired = ss.repair(source, frozenset(plan.removed), fit, compute=compute)
    pruned = ss.prune(source, plan, folder / f"{drop}-repaired", repair=repaired)
    clock.append(time.perf_counter())
    schedule = replace(task.schedule, seed=SEED)
    ss.heal(pruned, folder / f"{drop}-healed", replace(task, data=learnt, schedule=schedule))
    clock.append(time.perf_counter())
    seconds = dict(zip(STEPS, (after - before for before, after in itertools.pairwise(clock)), strict=True))
    return plan, ss.Checkpoint.open(str(folder / f"{drop}-healed")), seconds


def page(
    plans: Mapping[int, ss.Plan], seconds: Mapping[int, Mapping[str, float]], found: Mapping[str, ss.Evaluation]
) -> str:
    command = " ".join(["python studies/best.py", *("/".join(Path(each).parts[-2:]) for each in sys.argv[1:6])])
    base = found["unpruned"]
    lines = [
        f"# SmolLM2-135M-Instruct without {' and '.join(map(str, plans))} of its 30 layers, by the recipe best\n",
        f"`{command}`, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"Healed on C4, Dolly and copying; seed {SEED}. Perplexity in windows of 256 tokens; accuracy on the {LIMIT}",
        f"documents of each task behind its first {SKIPPED}, zero-shot; in brackets the difference from the unpruned model",
        f"and its standard error, paired. Probes of 50 items each, of seed {JUDGED}, as the windows are.\n",
        *table(found),
    ]
    for drop, plan in plans.items():
        healed, took = found[f"minus {drop}, healed"], seconds[drop]
        held = kept(healed, base, FIRST_THREE), kept(healed, base, TASKS[3:]), probes(healed) / probes(base)
        timed = ", ".join(f"{name} {value:.0f}" for name, value in took.items())
        lines += [
            f"\nMinus {drop}: layers {show_layers(plan.removed)} ({plan.strategy}), {SAMPLES[drop]} samples of 128 tokens.",
            f"Seconds, threads {torch.get_num_threads()}: {timed}; together {sum(took.values()):.0f}.",
            f"Kept of the unpruned model's mean over {', '.join(FIRST_THREE)} {held[0]:.1%}, of {TASKS[3]} {held[1]:.1%},",
            f"of the probes' mean {held[2]:.1%}; aims: {', '.join(f'{aim} %' for aim in AIMS[drop])}, in 15 minutes on two",
            "cores.",
        ]
    return "\n".join(lines) + "\n"


def table(found: Mapping[str, ss.Evaluation]) -> list[str]:
    """Perplexity, tasks and probes of each model, the tasks paired with the unpruned one."""
    base = found["unpruned"]
    columns = [*(Path(text).name for text in base.perplexity), *TASKS, "probes' mean", "collapsed"]
    return [
        f"| model | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
        *(_row(name, each, base) for name, each in found.items()),
        f"\n| probe | {' | '.join(found)} |",
        f"|{'---|' * (len(found) + 1)}",
        *(
            f"| {name} | {' | '.join(f'{each.probes[name].accuracy.value:.2f}' for each in found.values())} |"
            for name in base.probes
        ),
    ]


def _row(name: str, found: ss.Evaluation, base: ss.Evaluation) -> str:
    cells = [f"{each.value:.4g}" for each in found.perplexity.values()]
    paired = ss.compared(found, base).against if found is not base else {}
    for task in TASKS:
        difference = f" ({paired[task].difference:+.3f} ± {paired[task].stderr:.3f})" if paired else ""
        cells.append(f"{found.tasks[task].value:.3f}{difference}")
    collapsed = found.collapse is not None and bool(found.collapse.fallen)
    writing = f"{probes(found):.3f} ± {probes_error(found):.3f}"
    return f"| {name} | {' | '.join([*cells, writing, 'yes' if collapsed else 'no'])} |"


def probes(found: ss.Evaluation) -> float:
    """The mean accuracy over probes."""
    return sum(each.accuracy.value for each in found.probes.values()) / len(found.probes)


def probes_error(found: ss.Evaluation) -> float:
    """The standard error of that mean."""
    return math.hypot(*(each.accuracy.stderr for each in found.probes.values())) / len(found.probes)


def kept(found: ss.Evaluation, base: ss.Evaluation, tasks: tuple[str, ...]) -> float:
    """The mean accuracy over tasks as a share of the unpruned model's."""
    return sum(found.tasks[task].value for task in tasks) / sum(base.tasks[task].value for task in tasks)


def main() -> None:
    drops, c4, dolly, wiki, data, *place = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(*place or [temporary])
        folder.mkdir(exist_ok=True)
        texts = c4, rendered(dolly, ss.Checkpoint.open("demo"), folder / "dolly.jsonl")
        study([int(drop) for drop in drops.split(",")], texts, (wiki, unseen(data, folder / "tasks", SKIPPED)), folder)


def unseen(data: str, folder: Path, skipped: int) -> str:
    """The documents of the tasks behind the first `skipped`, which earlier runs were judged on, in the same layout."""
    for name in TASKS:
        task = KNOWN[name]
        for split, file in task.files.items():
            if split != task.evaluated and not (Path(data) / f"{file}.jsonl").is_file():
                continue  # examples for prompts, of which none have any here
            lines = (Path(data) / f"{file}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            kept_lines = lines[skipped:] if split == task.evaluated else lines
            (folder / f"{file}.jsonl").write_text("".join(kept_lines), encoding="utf-8")
    return str(folder)


def study(drops: Sequence[int], texts: tuple[str, str], judging: tuple[str, str], folder: Path) -> None:
    source = ss.Checkpoint.open("demo")
    models, plans, seconds = {"unpruned": source}, {}, {}
    for drop in drops:
        plans[drop], healed, seconds[drop] = line(source, texts, folder, drop)
        models |= {f"minus {drop}, healed": healed}
        print(drop, plans[drop].removed, plans[drop].compared, seconds[drop], flush=True)
    found = evaluations(models, *judging)
    Path(__file__).with_suffix(".md").write_text(page(plans, seconds, found), encoding="utf-8")


def evaluations(models: Mapping[str, ss.Checkpoint], wiki: str, data: str) -> dict[str, ss.Evaluation]:
    text = ss.EvaluationText(["pydoc", wiki], 256, samples=40)
    checks = ss.GenerationChecks(collapse_check=True, probes=True, probe_items=50)
    asked = ss.Tasks(TASKS, limit=LIMIT, data_dir=data)
    how = {"text": text, "tasks": asked, "generation": checks, "compute": ss.Compute(seed=JUDGED)}
    return {name: ss.evaluate(model, **how) for name, model in models.items()}


if __name__ == "__main__":
    main()
