"""How many calibration samples do SmolLM2's layers need to be put in order?

    python studies/calibration.py [TEXT]

The study of Lu et al., section 5 and table 6, for every metric that looks at text: layers are scored on 1, 5, 10, 30 and 50
windows of 128 tokens of TEXT (default pydoc), drawn by three seeds. KL divergence and perplexity without the eight lowest
layers are measured on 40 x 256 held-out tokens of pydoc. Writes studies/calibration.md, .json and two pictures.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch
import transformers
from scipy.stats import kendalltau

import shortstack as ss
from shortstack.charts import Picture
from shortstack.charts.chart import Chart, Point, Series, axis
from shortstack.charts.drawing import COLOURED, HEIGHT
from shortstack.charts.picture import Panel
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import SkippedLayers
from shortstack.machine.formats import show_layers
from shortstack.scoring import METRICS
from shortstack.scoring.measurement import Measurement, MeasurementSpec

COUNTS = (1, 5, 10, 30, 50)
SEEDS = (0, 1, 2)
DROP = 8
NAMES = [name for name, metric in METRICS.items() if metric.needs_text]
Found = Mapping[int, list[ss.Scores]]  # by samples, one for each seed


def scored(model: ss.Checkpoint, text: str) -> Found:
    tokenizer = model.tokenizer()
    return {
        count: [
            ss.score(model, ss.Tokens.read(text, tokenizer, samples=count, seed=seed), metrics=NAMES) for seed in SEEDS
        ]
        for count in COUNTS
    }


def cut(scores: ss.Scores, metric: str) -> SkippedLayers:
    return frozenset(ss.select_layers(scores, metric=metric, drop=DROP).removed)


def repeated(found: Found, metric: str) -> dict[int, tuple[float, float]]:
    """By samples: Kendall's tau between two seeds, and how many of the layers removed they share; means over pairs."""
    agreement = {}
    for count, by_seed in found.items():
        pairs = list(itertools.combinations(by_seed, 2))
        taus = [float(kendalltau(a.scores[metric], b.scores[metric]).statistic) for a, b in pairs]
        shared = [len(cut(a, metric) & cut(b, metric)) for a, b in pairs]
        agreement[count] = mean(taus), mean(shared)
    return agreement


def measured(model: ss.Checkpoint, cuts: set[SkippedLayers]) -> dict[SkippedLayers, tuple[float, float]]:
    """KL and perplexity without each set of layers, on tokens that no score saw."""
    tokens = ss.Tokens.read("pydoc", model.tokenizer(), samples=40, length=256, held_out=True)
    spec = MeasurementSpec([METRICS["kl"]], singles=False, sets=[frozenset(), *cuts])
    run = Measurement(Decoder.open(model), tokens, spec).go()
    ppl = METRICS["ppl"].function
    return {found: (run.distance(found), ppl(run.loss(found))) for found in spec.sets}


def line(cells: list[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def tables(found: Found, held_out: Mapping[SkippedLayers, tuple[float, float]]) -> list[str]:
    heading = ["metric", *(f"{count} sample{'s' * (count > 1)}" for count in COUNTS)]
    rule = f"|{'---|' * len(heading)}"
    page = ["\n## Agreement of two seeds: Kendall's tau of all layers (of 8 removed layers, so many are the same)\n"]
    page += [line(heading), rule]
    for metric in NAMES:
        page.append(line([metric, *(f"{tau:.2f} ({shared:.1f})" for tau, shared in repeated(found, metric).values())]))
    page += [
        "\n## Held-out KL without the eight lowest layers: lowest to highest of three seeds\n",
        line(heading),
        rule,
    ]
    for metric in NAMES:
        kls = [[held_out[cut(scores, metric)][0] for scores in found[count]] for count in COUNTS]
        page.append(line([metric, *(f"{min(each):.3f} to {max(each):.3f}" for each in kls)]))
    page += ["\n## The eight layers removed, seed 0\n", line(["metric", "samples", "removed", "KL", "perplexity"])]
    page.append(f"|{'---|' * 5}")
    for metric, count in itertools.product(NAMES, COUNTS):
        gone = cut(found[count][0], metric)
        kl, ppl = held_out[gone]
        page.append(line([metric, count, show_layers(sorted(gone)), f"{kl:.3f}", f"{ppl:.4g}"]))
    return page


def picture(found: Found, path: Path) -> None:
    """Agreement of seeds against the number of samples, a line for each metric."""
    lines = []
    for place, metric in enumerate(NAMES):
        points = [
            Point(count, tau, f"{metric}, {count}: {tau:.2f}") for count, (tau, _) in repeated(found, metric).items()
        ]
        lines.append(Series(metric, points, place if place < COLOURED else None))
    taus = axis("Kendall's tau between seeds", [point.y for line in lines for point in line.points], "{:g}".format)
    samples = axis("calibration samples of 128 tokens", COUNTS, "{:g}".format, log=True)
    legend = [(line.colour, line.name) for line in lines]
    svg = Chart("agreement of seeds", samples, taus, lines).svg()
    path.unlink(missing_ok=True)
    Picture("Agreement of seeds by the number of samples", [Panel("", svg, HEIGHT, legend)]).save(path)


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    text = sys.argv[1] if len(sys.argv) > 1 else "pydoc"
    model, out = ss.Checkpoint.open("demo"), Path(__file__)
    found = scored(model, text)
    cuts = {cut(scores, metric) for by_seed in found.values() for scores in by_seed for metric in NAMES}
    held_out = measured(model, cuts)
    kl, ppl = held_out[frozenset()]
    command = " ".join(["python studies/calibration.py", *(Path(each).name for each in sys.argv[1:])])
    page = [
        "# How many calibration samples SmolLM2-135M-Instruct needs\n",
        f"`{command}`, in {found[1][0].dtype}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{time.strftime('%Y-%m-%d')}. Calibrated on {Path(text).name}, windows of 128 tokens, seeds {SEEDS}; KL divergence "
        f"and perplexity on 40 x 256 held-out tokens of pydoc. Unpruned: KL {kl:.0f}, perplexity {ppl:.4g}.\n",
        "![agreement of seeds](calibration.svg)\n\n![orders at 10 samples](calibration-orders.svg)",
        *tables(found, held_out),
    ]
    out.with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")
    scores = {str(count): [each.to_dict() for each in by_seed] for count, by_seed in found.items()}
    out.with_suffix(".json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    picture(found, out.with_suffix(".svg"))
    orders = out.with_name("calibration-orders.svg")
    orders.unlink(missing_ok=True)
    found[10][0].plot(DROP).save(orders)


if __name__ == "__main__":
    main()
