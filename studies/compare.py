"""Is pruning worth it on SmolLM2, at the same bytes of weights, beside fewer bits, fewer neurons and 2:4 masks?

    python studies/compare.py [TEXT ...]

Every contender of `shortstack compare` at 75 % and at 50 % of the unpruned bytes. Layers (lowest ppl), neurons and Wanda's
masks are chosen on 32 x 128 tokens of pydoc, repair is fitted on 64 x 128. Perplexity is measured on 4 x 512 held-out tokens
of pydoc and of each TEXT; speed with one sequence, 128 tokens of prompt and 16 new ones, in six turns with the unpruned
model. Writes studies/compare.md and .json.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

import shortstack as ss
from shortstack.comparing import Comparison, Row
from shortstack.console import number, size
from shortstack.progress import Progress
from shortstack.timing import Load

SHARES = ("75%", "50%")
WINDOWS, LENGTH, REPAIR_WINDOWS = 4, 512, 64
PACKAGES = ("torch", "transformers", "torchao", "bitsandbytes")


def say(stage: str, done: int, total: int, /, *, note: str = "") -> None:
    if done == total:
        print(f"{time.strftime('%H:%M:%S')} {stage} {note}", file=sys.stderr, flush=True)


def compared(model: ss.Checkpoint, share: str, texts: list[str], progress: Progress = say) -> Comparison:
    tokenizer = model.tokenizer()
    calibration = ss.Calibration(
        ss.Tokens.read("pydoc", tokenizer, samples=32),
        ss.Tokens.read("pydoc", tokenizer, samples=REPAIR_WINDOWS),
    )
    judged = {
        Path(text).stem: ss.Tokens.read(text, tokenizer, samples=WINDOWS, length=LENGTH, held_out=True)
        for text in ("pydoc", *texts)
    }
    judging = ss.Judging(judged, load=Load(prompt=128, new_tokens=16))
    return ss.compare(model, calibration, judging, memory=share, progress=progress)


def table(found: Comparison) -> list[str]:
    texts = list(found.rows[0].perplexity)
    heading = ("", "bytes", "fits", *(f"perplexity, {text}" for text in texts), "decode", "prefill", "")
    return [
        f"| {' | '.join(heading)} |",
        f"|{'---|' * len(heading)}",
        *(f"| {' | '.join(cells(row, texts))} |" for row in found.rows),
    ]


def cells(row: Row, texts: list[str]) -> list[str]:
    if row.reason:
        return [row.name, *["-"] * (4 + len(texts)), row.reason]
    speeds = ["1", "1"] if row.speed else ["-", "-"]
    if row.ratio:
        speeds = [
            f"{each.value:.2f} ({each.low:.2f} to {each.high:.2f})" for each in (row.ratio.decode, row.ratio.prefill)
        ]
    measured = [f"{number(row.perplexity[text].value)}" for text in texts]
    return [row.name, size(row.bytes or 0), "yes" if row.within else "no", *measured, *speeds, row.note]


def page(found: list[Comparison], texts: list[str], started: str) -> str:
    command = shlex.join(["python", "studies/compare.py", *(Path(text).name for text in texts)])
    first = found[0]
    confidence = next(row.ratio.decode.confidence for row in first.rows if row.ratio)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Pruned, quantised, narrowed or masked: SmolLM2-135M-Instruct at equal bytes of weights\n",
        f"`{command}`, in {first.dtype}, {versions}, {started}.\n",
        f"Speeds were taken as paired turns on a shared 2-core machine, with {first.threads} thread, and are times the",
        f"unpruned model's: the median of six turns, in brackets what covers the true one in {confidence:.0%} of cases.",
        f"Perplexity is on {WINDOWS} x {LENGTH} held-out tokens of each text. Layers, neurons and masks are chosen on",
        f"32 x 128 tokens of pydoc, repair is fitted on {REPAIR_WINDOWS} x 128.\n",
    ]
    for each in found:
        lines += [f"## {each.memory} of the bytes: {size(each.budget)}\n", *table(each), "", f"{each.advice}\n"]
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    texts, started = sys.argv[1:], time.strftime("%Y-%m-%d")
    found = [compared(ss.Checkpoint.open("demo"), share, texts) for share in SHARES]
    here = Path(__file__)
    here.with_suffix(".md").write_text(page(found, texts, started), encoding="utf-8")
    data = json.dumps([each.to_dict() for each in found], indent=1)
    for text in texts:  # its name is enough
        data = data.replace(json.dumps(text), json.dumps(Path(text).name))
    here.with_suffix(".json").write_text(data + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
