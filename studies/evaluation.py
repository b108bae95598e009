"""How do the eight tasks, GSM8K, perplexity and the probes judge SmolLM2, whole, cut, repaired and healed?

    python studies/evaluation.py DATA_DIR WIKI_TEXT NAME=MODEL ...

DATA_DIR is laid out as docs/evaluate.md says. Every MODEL is a checkpoint made from the demo's model, which comes first and
which the others are paired with, document by document. LIMIT documents of each task are asked, of mmlu and cmmlu PART of
each subject, of GSM8K WRITTEN. Writes studies/evaluation.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers

import shortstack as ss
from shortstack.evaluation import TaskResult
from shortstack.evaluation.suites import SUITES

LIMIT, PART, WRITTEN = 500, 4, 20
BY_PART = ("mmlu", "cmmlu")
GENERATED = "gsm8k"
PROBE_ITEMS = 50
# lm-evaluation-harness, zero-shot, of the 16-bit weights: the model card of lldois/SmolLM2-135M-Reasoning-SLERP-Champion.
PUBLISHED = {
    ("arc_easy", "acc"): 0.5412,
    ("arc_challenge", "acc_norm"): 0.2773,
    ("hellaswag", "acc_norm"): 0.4299,
    ("piqa", "acc_norm"): 0.6692,
}
WHOLE = ("arc_easy", "arc_challenge", "piqa")  # asked all their documents for that


def asked(model: ss.Checkpoint, names: Sequence[str], data: str, limit: int | None = None) -> Mapping[str, TaskResult]:
    """Results of tasks, and nothing else."""
    return ss.evaluate(model, ss.EvalConfig("none", tasks=names, limit=limit, data_dir=data)).tasks


def measured(model: ss.Checkpoint, data: str, wiki: str) -> ss.EvalResult:
    """Everything of one model; the parts of it that take other limits are asked for by themselves."""
    single = [name for name in SUITES["paper"] if name not in BY_PART]
    limits = {LIMIT: single, PART: BY_PART, WRITTEN: [GENERATED]}
    tasks = {}
    for limit, names in limits.items():
        tasks |= asked(model, names, data, limit)
    texts = {"perplexity": ("pydoc", wiki), "seq_length": 256, "num_samples": 40}
    found = ss.evaluate(model, ss.EvalConfig(**texts, probes=True, probe_items=PROBE_ITEMS))
    return replace(found, tasks=tasks)


def table(found: Mapping[str, ss.EvalResult]) -> list[str]:
    """A line for each measure, a column for each model."""
    base = next(iter(found.values()))
    found = {name: each if each is base else each.compare_to(base) for name, each in found.items()}
    compared = {name: each.against for name, each in list(found.items())[1:]}
    lines = [f"| measure | n | {' | '.join(found)} |", f"|{'---|' * (len(found) + 2)}"]
    for text in base.perplexity:
        name = "/".join(Path(text).parts[-2:])
        values = " | ".join(f"{each.perplexity[text].value:.4g}" for each in found.values())
        lines.append(f"| perplexity, {name} | {base.perplexity[text].tokens:,} tokens | {values} |")
    for task, result in base.tasks.items():
        cells = [f"{result.value:.3f} ± {result.stderr:.3f}"]
        for name in compared:
            paired = compared[name][task]
            mark = "*" if paired.p_holm < 0.05 else ""
            cells.append(f"{paired.value:.3f} ({paired.difference:+.3f} ± {paired.stderr:.3f}){mark}")
        lines.append(f"| {task}, {result.metric} | {result.n:,} | {' | '.join(cells)} |")
    lines.append(f"| average of the eight | | {' | '.join(f'{_average(each):.4f}' for each in found.values())} |")
    for probe, result in base.probes.items():
        values = " | ".join(f"{each.probes[probe].value:.2f}" for each in found.values())
        lines.append(f"| probe: {probe} | {result.n} | {values} |")
    return lines


def kept(found: Mapping[str, ss.EvalResult]) -> list[str]:
    """Of each task, how much of the unpruned value is kept, also above chance, and the interval of the difference."""
    base, *made = found.values()
    names = list(found)[1:]
    compared = {name: each.compare_to(base).against for name, each in zip(names, made, strict=True)}
    heading = [f"{name}, {what}" for name in names for what in ("kept", "above chance", "difference, 95 %")]
    lines = [f"| task | {' | '.join(heading)} |", f"|{'---|' * (len(heading) + 1)}"]
    for task in SUITES["paper"]:
        cells = []
        for name in names:
            paired = compared[name][task]
            cells += [_percent(paired.retention), _percent(paired.retention_above_chance)]
            cells.append("{:+.3f} to {:+.3f}".format(*paired.interval))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"


def _average(found: ss.EvalResult) -> float:
    return sum(found.tasks[name].value for name in SUITES["paper"]) / len(SUITES["paper"])


def published(base: ss.EvalResult, whole: Mapping[str, TaskResult]) -> list[str]:
    """The unpruned model beside what others have published of it; whole: results on all documents of a task."""
    lines = ["| task | metric | here | published | gap |", "|---|---|---|---|---|"]
    for (task, metric), value in PUBLISHED.items():
        result = whole.get(task, base.tasks[task])
        here = result.value if metric == result.metric else result.also[metric]
        gap = f"{here - value:+.4f} ± {(here * (1 - here) / (result.n - 1)) ** 0.5:.4f}"
        lines.append(f"| {task} | {metric} | {here:.4f} (n {result.n:,}) | {value:.4f} | {gap} |")
    return lines


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    data, wiki, *named = sys.argv[1:]
    models = {"unpruned": "demo", **dict(each.split("=", 1) for each in named)}
    found = {}
    for name, place in models.items():
        found[name] = measured(ss.Checkpoint.open(place), data, wiki)
        print(name, {task: round(result.value, 3) for task, result in found[name].tasks.items()}, flush=True)
    whole = asked(ss.Checkpoint.open("demo"), WHOLE, data)
    text, given = "/".join(Path(wiki).parts[-2:]), " ".join(f"{name}=MODEL" for name in list(models)[1:])
    command = f"python studies/evaluation.py DATA_DIR {text} {given}"
    lines = [
        "# SmolLM2-135M-Instruct on the paper's eight tasks, GSM8K, text and probes\n",
        f"`{command}`, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"The first {LIMIT} documents of each task, of mmlu and cmmlu the first {PART} of each subject, of GSM8K the first "
        f"{WRITTEN} (five shots); the others zero-shot. In brackets the difference from the unpruned model on the same",
        "documents, with its standard error; * where McNemar's test, corrected for all tasks by Holm, is below 5 %.\n",
        "The models: `shortstack prune demo --layers 12-18,25 -o cut`; repaired and healed are of the same layers, by the",
        f"recipe `best` as it was on 2026-11-26. {WRITTEN} documents of GSM8K, which",
        "the unpruned model does not solve either, tell nothing apart; mmlu and cmmlu are at chance (.25) for it.\n",
        *table(found),
        "\n## What is kept\n",
        "In percent of the unpruned value, and of what that has above guessing; - where the unpruned model is at chance.",
        "Intervals of differences are Student's, over the same documents.\n",
        *kept(found),
        "\n## Beside published figures\n",
        *published(found["unpruned"], whole),
        "\nPublished: lm-evaluation-harness, zero-shot, of the 16-bit weights (model card of",
        "lldois/SmolLM2-135M-Reasoning-SLERP-Champion, read 2026-11-25; not by the model's authors). Here the weights are",
        "the package's Q4_1 ones, read into bf16. Where all documents are asked, what is left of the gap is the weights'",
        "and the harness version's; of hellaswag only the first documents are asked.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
