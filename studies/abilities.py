"""Which layers of SmolLM2 carry what, which metrics see that, and what each way of choosing costs by kind of text.

    python studies/abilities.py C4_JSONL

Layers are scored on 10 x 128 tokens of each kind: C4, the model's own chats, copying, recall. Every metric then chooses 8 of
30 layers, once on C4 alone and once on C4, own chats and copying; a search, and removal one at a time, do the same.
What is lost is measured on windows of another seed. Nothing is repaired or healed. Writes studies/abilities.md.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

import shortstack as ss
from shortstack.decoder import Decoder, calibration_tokens
from shortstack.decoder.decoder import UNPRUNED
from shortstack.machine.formats import show_layers
from shortstack.planning import Choice
from shortstack.scoring import METRICS
from shortstack.scoring.measurement import Measurement, MeasurementSpec

SAMPLES, DROP = 10, 8
DEAR = 3.0  # times the median: more than a layer usually costs
KINDS = ("C4", "self", "copying", "recall")
METRICS_ASKED = ("random", "reverse", "magnitude-l1", "magnitude-l2", "taylor", "ppl", "bi", "kl", "angular")
STEPS = {"ppl, 1 at a time": Choice("ppl", DROP, step=1), "search by kl": Choice(drop=DROP, strategy="search")}


def texts(c4: str) -> dict[str, str]:
    """Return the texts that layers are scored and chosen on, by name."""
    return {"C4": c4, "C4, self, copying": f"{c4},self,copying", "all": f"{c4},self,copying,recall"}


def read(model: ss.Checkpoint, text: str, seed: int) -> ss.Tokens:
    return calibration_tokens(model, ss.CalibrationText(text, SAMPLES), compute=ss.Compute(seed=seed))


def plans(model: ss.Checkpoint, tokens: ss.Tokens) -> dict[str, ss.Plan]:
    """By every metric and both ways to measure shorter models."""
    scores = ss.score(model, tokens, metrics=METRICS_ASKED)
    found = {metric: ss.choose(scores, ss.Choice(metric, DROP)).plan for metric in METRICS_ASKED}
    return {**found, **{name: ss.choose(model, choice, tokens).wanted for name, choice in STEPS.items()}}


def layer_costs(decoder: Decoder, tokens: ss.Tokens) -> dict[str, list[float]]:
    """The nats per token that each layer's removal costs, by kind."""
    run = Measurement(decoder, tokens, MeasurementSpec([METRICS["ppl"]])).go()
    singles = [frozenset({layer}) for layer in range(run.layers)]
    return {
        kind: [float(outputs.losses[single].value - outputs.losses[UNPRUNED].value) for single in singles]
        for kind, outputs in zip(KINDS, run.outputs, strict=True)
    }


def ability_map(lost: Mapping[str, Sequence[float]]) -> list[str]:
    """Return what each layer's removal costs on each kind, and which layers look cheap on C4 and are not."""
    lines = [f"| layer | {' | '.join(lost)} |", f"|{'---|' * (len(lost) + 1)}"]
    for layer, values in enumerate(zip(*lost.values(), strict=True)):
        lines.append(f"| {layer} | {' | '.join(f'{value:.2f}' for value in values)} |")
    first, *others = lost
    half = statistics.median(lost[first])
    for kind in others:
        usual = statistics.median(lost[kind])
        carriers = [
            layer
            for layer, (cheap, dear) in enumerate(zip(lost[first], lost[kind], strict=True))
            if cheap <= half and dear > DEAR * usual
        ]
        lines.append(f"\nLow impact on C4, high on {kind}: {show_layers(carriers) or 'none'}.")
    return lines


def costs(decoder: Decoder, sets: Mapping[str, ss.Plan], judged: ss.Tokens) -> list[str]:
    """A line for each plan: what is lost on each kind, on windows that chose nothing."""
    asked = [frozenset(plan.removed) for plan in sets.values()]
    run = Measurement(decoder, judged, MeasurementSpec([METRICS["ppl"]], singles=False, sets=[UNPRUNED, *asked])).go()
    lines = []
    for (name, plan), removed in zip(sets.items(), asked, strict=True):
        each = [float(outputs.losses[removed].value - outputs.losses[UNPRUNED].value) for outputs in run.outputs]
        lines.append(_row([name, show_layers(plan.removed), *(f"{value:.2f}" for value in each)]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    (c4,) = sys.argv[1:]
    model, sources = ss.Checkpoint.open("demo"), texts(c4)
    judged, decoder = read(model, sources["all"], 1), Decoder.open(model)
    everything = layer_costs(decoder, read(model, sources["all"], 0))
    page = [
        "# Which layers of SmolLM2-135M-Instruct carry what\n",
        f"`python studies/abilities.py {'/'.join(Path(c4).parts[-2:])}`, in {decoder.dtype}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"Nats per token that are lost without a layer, on {SAMPLES} x 128 tokens of each kind; of copying and recall only "
        "what the context determines counts.\n",
        *ability_map(everything),
        f"\n## {DROP} of 30 layers, and what that costs by kind\n",
        "Chosen on the text in the heading, measured on windows of another seed; nothing is repaired or healed.",
    ]
    for name in ("C4", "C4, self, copying"):
        chosen = plans(model, read(model, sources[name], 0))
        page += [f"\n### Chosen on {name}\n", _row(["by", "layers", *KINDS]), f"|{'---|' * (len(KINDS) + 2)}"]
        page += costs(decoder, chosen, judged)
        Path(__file__).with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
