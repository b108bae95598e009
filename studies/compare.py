"""Is pruning worth it on SmolLM2, at the same bytes of weights, beside fewer bits, fewer neurons and 2:4 masks?

    python studies/compare.py HEAL_DATA TASK_DATA_DIR [TEXT ...]

Every baseline of `shortstack compare` at 75 % and at 50 % of the unpruned bytes. Layers (lowest ppl), neurons and Wanda's
masks are chosen on 32 x 128 tokens of pydoc, repair is fitted on 64 x 128, and the same cut, repaired, is healed on
HEAL_DATA as the recipe best says; its choice of layers is left out, for some of ten minutes each. Perplexity is measured on
4 x 512 held-out tokens of pydoc and of each TEXT, accuracy on the first 100 documents of each task; speed with one sequence,
128 tokens of prompt and 16 new ones, in six turns with the unpruned model. Writes studies/compare.md and .json.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

import shortstack as ss
from shortstack.comparison import Comparison, judge_tasks
from shortstack.comparison.baselines import parse_memory
from shortstack.comparison.comparison import ComparisonRow
from shortstack.healing.recipes import read_recipe
from shortstack.healing.task import task_of
from shortstack.machine.formats import number, size
from shortstack.machine.progress import Progress
from shortstack.profiling.speed import Load

SHARES = ("75%", "50%")
WINDOWS, LENGTH, REPAIR_WINDOWS = 4, 512, 64
TASKS, DOCUMENTS = ("piqa", "arc_easy"), 100
PACKAGES = ("torch", "transformers", "torchao", "bitsandbytes")


def say(stage: str, done: int, total: int, /, *, note: str = "") -> None:
    if done == total:
        print(f"{time.strftime('%H:%M:%S')} {stage} {note}", file=sys.stderr, flush=True)


def compared(
    model: ss.Checkpoint, share: str, judging: ss.EvaluationSpec, data: str, progress: Progress = say
) -> Comparison:
    tokenizer = model.tokenizer()
    tokens, windows = (ss.Tokens.read("pydoc", tokenizer, samples=samples) for samples in (32, REPAIR_WINDOWS))
    with tempfile.TemporaryDirectory() as folder:
        budget = parse_memory(share, model.weight_bytes)
        plan = ss.choose(model, ss.Choice("ppl", memory=f"{budget}B"), tokens, progress=progress).plan
        cut = ss.prune(model, plan, Path(folder) / "cut", repair=windows, progress=progress)
        task = task_of({**read_recipe("best").heal.given, "data": data}, teacher=model)
        ss.heal(cut, Path(folder) / "healed", task, progress=progress)
        calibration = ss.Calibration(tokens, windows, healed=str(Path(folder) / "healed"))
        return ss.compare(model, calibration, judging, memory=share, progress=progress)


def judged_on(model: ss.Checkpoint, folder: str, texts: list[str]) -> ss.EvaluationSpec:
    tokenizer = model.tokenizer()
    read = {
        Path(text).stem: ss.Tokens.read(text, tokenizer, samples=WINDOWS, length=LENGTH, held_out=True)
        for text in ("pydoc", *texts)
    }
    tasks = judge_tasks(ss.Tasks(TASKS, limit=DOCUMENTS, data_dir=folder), model)
    return ss.EvaluationSpec(read, [tasks], load=Load(prompt=128, new_tokens=16))


def table(found: Comparison) -> list[str]:
    texts = list(found.rows[0].perplexity)
    heading = (
        "",
        "bytes",
        "fits",
        *(f"perplexity, {text}" for text in texts),
        *TASKS,
        "collapsed",
        "decode",
        "prefill",
        "",
    )
    return [
        f"| {' | '.join(heading)} |",
        f"|{'---|' * len(heading)}",
        *(f"| {' | '.join(cells(row, texts))} |" for row in found.rows),
    ]


def cells(row: ComparisonRow, texts: list[str]) -> list[str]:
    if row.reason:
        return [row.name, *["-"] * (5 + len(texts) + len(TASKS)), row.reason]
    speeds = ["1", "1"] if row.speed else ["-", "-"]
    if row.ratio:
        speeds = [
            f"{each.value:.2f} ({each.low:.2f} to {each.high:.2f})" for each in (row.ratio.decode, row.ratio.prefill)
        ]
    measured = [f"{number(row.perplexity[text].value)}" for text in texts]
    measured += [f"{row.tasks[task]['value']:.2f}" for task in TASKS] + ["yes" if row.collapsed else "no"]
    return [row.name, size(row.bytes or 0), "yes" if row.within else "no", *measured, *speeds, row.note]


def page(found: list[Comparison], arguments: list[str], started: str) -> str:
    command = shlex.join(["python", "studies/compare.py", *(Path(each).name for each in arguments)])
    first = found[0]
    confidence = next(row.ratio.decode.confidence for row in first.rows if row.ratio)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Pruned, quantised, narrowed or masked: SmolLM2-135M-Instruct at equal bytes of weights\n",
        f"`{command}`, in {first.dtype}, {versions}, {started}.\n",
        f"Speeds were taken as paired turns on a shared 2-core machine, with {first.threads} thread, and are times the",
        f"unpruned model's: the median of six turns, in brackets what covers the true one in {confidence:.0%} of cases.",
        f"Perplexity is on {WINDOWS} x {LENGTH} held-out tokens of each text, accuracy on the first {DOCUMENTS} documents",
        "of each task (standard error at most 0.05). Layers (lowest ppl), neurons and masks are chosen on 32 x 128 tokens",
        f"of pydoc, repair is fitted on {REPAIR_WINDOWS} x 128. Healed is the repaired cut after the recipe best on the",
        "first argument. Collapsed: by what the model writes freely, against the unpruned one.\n",
    ]
    for each in found:
        collapsed = [f"- {warning}" for warning in each.warnings]
        lines += [f"## {each.memory} of the bytes: {size(each.budget_bytes)}\n", *table(each), "", f"{each.advice}\n"]
        lines += [*collapsed, ""] if collapsed else []
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    data, folder, *texts = sys.argv[1:]
    model, started = ss.Checkpoint.open("demo"), time.strftime("%Y-%m-%d")
    judging = judged_on(model, folder, texts)
    found = [compared(model, share, judging, data) for share in SHARES]
    here = Path(__file__)
    here.with_suffix(".md").write_text(page(found, sys.argv[1:], started), encoding="utf-8")
    written = json.dumps([each.to_dict() for each in found], indent=1)
    for text in (data, folder, *texts):  # its name is enough
        written = written.replace(json.dumps(text), json.dumps(Path(text).name))
    here.with_suffix(".json").write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
