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
from shortstack.measuring import Run, Wanted
from shortstack.metrics import METRICS
from shortstack.planning import show_layers
from shortstack.walk import Decoder, arithmetic

SAMPLES = 32
DROPS = {"20 %": 6, "27 %": 8}


def chosen(model: ss.Checkpoint, amount: int) -> Mapping[str, tuple[ss.Plan, float]]:
    """Plans by name, and the seconds that each took."""
    tokens = ss.Tokens.read("pydoc", model.tokenizer(), samples=SAMPLES)
    found = {}
    for name, make in {
        "search": lambda: ss.select(model, tokens, drop=amount),
        "ppl, 1 at a time": lambda: ss.select(model, tokens, drop=amount, step=1),
        "lowest ppl": lambda: ss.plan(ss.score(model, tokens), drop=amount),
        "lowest bi": lambda: ss.plan(ss.score(model, tokens, metrics=["bi"]), drop=amount),
        "tail": lambda: ss.plan(model.anatomy.layers, metric="reverse", drop=amount),
    }.items():
        start = time.perf_counter()
        found[name] = make(), time.perf_counter() - start
    return found


def rows(model: ss.Checkpoint, decoder: Decoder, amount: int, texts: list[str]) -> list[str]:
    plans = chosen(model, amount)
    sets = {name: frozenset(plan.removed) for name, (plan, _) in plans.items()}
    cells = {name: [name, show_layers(plan.removed), f"{seconds:.0f}"] for name, (plan, seconds) in plans.items()}
    whole = ["unpruned", "-", "-"]
    for text in texts:
        tokens = ss.Tokens.read(text, model.tokenizer(), samples=40, length=256, held_out=True)
        run = Run(decoder, tokens.ids, Wanted([METRICS["kl"]], singles=False, sets=[*sets.values()])).go()
        whole += ["0", f"{METRICS['ppl'].function(run.base_loss):.4g}"]
        for name, removed in sets.items():
            perplexity = METRICS["ppl"].function(run.losses[removed].value)
            cells[name] += [f"{run.divergences[removed].value:.4g}", f"{perplexity:.4g}"]
    return [f"| {' | '.join(row)} |" for row in (whole, *cells.values())]


def main() -> None:
    torch.manual_seed(0)
    texts = ["pydoc", *sys.argv[1:]]
    model = ss.Checkpoint.open("demo")
    dtype = arithmetic("auto", model, "cpu")
    decoder = Decoder.load(model, dtype=dtype)
    columns = [
        "chosen by",
        "layers removed",
        "s",
        *(f"{Path(t).name}: {what}" for t in texts for what in ("KL", "ppl")),
    ]
    names = " ".join(Path(text).name for text in texts[1:])
    page = [
        "# Choosing layers of SmolLM2-135M-Instruct\n",
        f"`python studies/selection.py {names}`, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"Chosen on {SAMPLES} x 128 tokens of pydoc; measured on 40 x 256 tokens that no choice saw.",
    ]
    for share, amount in DROPS.items():
        page += [f"\n## {amount} of 30 layers ({share})\n", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        page += rows(model, decoder, amount, texts)
    Path(__file__).with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
