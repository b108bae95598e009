"""How much does closed-form repair give back of SmolLM2's perplexity, on the kind of text it was fitted on and on others?

    python studies/repair.py FIT [TEXT ...]

Kept layers are refitted on at most 256 x 128 tokens of FIT. Perplexity is measured on 40 x 256 held-out tokens of pydoc and
of each TEXT: of the unpruned model, and without and with repair of every tail cut of 1 to 12 layers, of three windows of
eight, of the eight lowest layers by bi and by ppl, and of the eight that a search found (studies/selection.md). Writes
studies/repair.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

import shortstack as ss
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED
from shortstack.evaluation.perplexity import measure
from shortstack.machine.formats import show_layers

SAMPLES = 256
TAILS = range(1, 13)
OTHERS = {"search": "12-18,25", "a window": "2-9", "a later window": "11-18", "the next": "12-19"}


def cuts(model: ss.Checkpoint) -> dict[str, ss.Plan]:
    scores = ss.score(model, ss.Tokens.read("pydoc", model.tokenizer(), samples=32), metrics=["ppl", "bi"])
    return {
        **{f"tail of {gone}": ss.select_layers(scores, metric="reverse", drop=gone) for gone in TAILS},
        **{f"lowest {metric}": ss.select_layers(scores, metric=metric, drop=8) for metric in scores.scores},
        **{name: ss.select_layers(scores, layers=some) for name, some in OTHERS.items()},
    }


def perplexities(decoder: Decoder, texts: Mapping[str, ss.Tokens], removed: frozenset[int] = UNPRUNED) -> list[float]:
    return [measure(decoder, tokens, route=removed).value for tokens in texts.values()]


def repaired(
    model: ss.Checkpoint, plan: ss.Plan, fit: ss.Tokens, texts: Mapping[str, ss.Tokens]
) -> tuple[list[float], float]:
    """Perplexities of the repaired cut, and the seconds that the repair took."""
    with tempfile.TemporaryDirectory() as folder:
        pruned = ss.prune(model, plan, Path(folder) / "repaired", repair=fit)
        return perplexities(Decoder.open(pruned), texts), pruned.record["repair"]["seconds"]


def row(name: str, removed: str, before: list[float], after: list[float], seconds: str = "-") -> str:
    cells = [f"{b:.4g} to {a:.4g}" if after else f"{b:.4g}" for b, a in zip(before, after or before, strict=True)]
    return f"| {' | '.join([name, removed, *cells, seconds])} |"


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    fit, *others = sys.argv[1:]
    model, started = ss.Checkpoint.open("demo"), time.strftime("%Y-%m-%d")
    decoder, tokenizer = Decoder.open(model), model.tokenizer()
    texts = {
        Path(text).name: ss.Tokens.read(text, tokenizer, samples=40, length=256, held_out=True)
        for text in ("pydoc", *others)
    }
    tokens = ss.Tokens.read(fit, tokenizer, samples=SAMPLES, at_least=4)
    rows = [row("unpruned", "-", perplexities(decoder, texts), [])]
    for name, plan in cuts(model).items():
        before = perplexities(decoder, texts, frozenset(plan.removed))
        after, seconds = repaired(model, plan, tokens, texts)
        rows.append(row(name, show_layers(plan.removed), before, after, f"{seconds:.0f}"))
        print(rows[-1], file=sys.stderr, flush=True)
    heading = ["cut", "layers removed", *(f"{text}: without to with repair" for text in texts), "repair, s"]
    command = " ".join(["python studies/repair.py", *(Path(each).name for each in sys.argv[1:])])
    page = [
        "# Closed-form repair of SmolLM2-135M-Instruct\n",
        f"`{command}`, in {decoder.dtype}, torch {torch.__version__}, transformers {transformers.__version__}, {started}.\n",
        f"Refitted on {len(tokens.ids)} x 128 tokens of {Path(fit).name}: one in eight judges, one in four of the others "
        "chooses ridges.\n",
        f"| {' | '.join(heading)} |",
        f"|{'---|' * len(heading)}",
        *rows,
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
