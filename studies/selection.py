"""Which way of choosing layers moves SmolLM2's output least, on tokens that none of them saw?

    python studies/selection.py [TEXT ...]

Layers are chosen on 32 x 128 tokens of pydoc's first 80 %; KL divergence and perplexity are measured on 40 x 256 tokens of
its last 20 % and of each TEXT. Writes studies/selection.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

import shortstack as ss
from shortstack.decoder import Decoder
from shortstack.machine.formats import show_layers
from shortstack.scoring import METRICS
from shortstack.scoring.measurement import Measurement, MeasurementSpec

SAMPLES = 32
DROPS = {"20 %": 6, "27 %": 8}


def chosen(model: ss.Checkpoint, scores: ss.Scores, tokens: ss.Tokens, amount: int) -> Mapping[str, ss.Plan]:
    """Plans by name, all from the same tokens."""
    return {
        "search": ss.select_layers(model, tokens, drop=amount, strategy="search"),
        "ppl, 1 at a time": ss.select_layers(model, tokens, drop=amount, step=1),
        **{f"lowest {metric}": ss.select_layers(scores, metric=metric, drop=amount) for metric in scores.scores},
        "tail": ss.select_layers(scores, metric="reverse", drop=amount),
    }


def rows(decoder: Decoder, plans: Mapping[str, ss.Plan], texts: Mapping[str, ss.Tokens]) -> list[str]:
    """A table line for the unpruned model and for each plan: KL and perplexity on each text."""
    sets = {name: frozenset(plan.removed) for name, plan in plans.items()}
    cells = {name: [name, show_layers(plan.removed)] for name, plan in plans.items()}
    whole, ppl = ["unpruned", "-"], METRICS["ppl"].function
    for tokens in texts.values():
        run = Measurement(decoder, tokens, MeasurementSpec([METRICS["kl"]], singles=False, sets=[*sets.values()])).go()
        whole += ["0", f"{ppl(run.base_loss):.4g}"]
        for name, removed in sets.items():
            cells[name] += [f"{run.distance(removed):.4g}", f"{ppl(run.loss(removed)):.4g}"]
    return [f"| {' | '.join(row)} |" for row in (whole, *cells.values())]


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    model = ss.Checkpoint.open("demo")
    decoder, tokenizer = Decoder.open(model), model.tokenizer()
    texts = {
        Path(source).name: ss.Tokens.read(source, tokenizer, samples=40, length=256, held_out=True)
        for source in ("pydoc", *sys.argv[1:])
    }
    tokens = ss.Tokens.read("pydoc", tokenizer, samples=SAMPLES)
    scores = ss.score(model, tokens, metrics=["ppl", "kl", "bi"])
    columns = ["chosen by", "layers removed", *(f"{text}: {what}" for text in texts for what in ("KL", "ppl"))]
    page = [
        "# Choosing layers of SmolLM2-135M-Instruct\n",
        f"`python studies/selection.py {' '.join([*texts][1:])}`, in {decoder.dtype}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"Chosen on {SAMPLES} x 128 tokens of pydoc; measured on 40 x 256 tokens of each text that no choice saw.",
    ]
    for share, amount in DROPS.items():
        page += [f"\n## {amount} of 30 layers ({share})\n", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        page += rows(decoder, chosen(model, scores, tokens, amount), texts)
    Path(__file__).with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
