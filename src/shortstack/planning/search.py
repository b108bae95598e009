"""Evolutionary search for the set of layers whose removal changes the output least (after EvoPress, arXiv 2410.14649)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from shortstack.data import Tokens
from shortstack.data.tokens import HELD_OUT, check_enough, split
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import SkippedLayers
from shortstack.machine.formats import show_layers
from shortstack.machine.numbers import checked
from shortstack.machine.progress import Progress, silent
from shortstack.planning.layer_sets import Removal, lowest, lowest_window
from shortstack.planning.plans import Plan
from shortstack.scoring import METRICS
from shortstack.scoring.measurement import Measurement, MeasurementSpec

MEASURED = "KL divergence to the base model (held-out, nats per token)"
GENERATIONS, OFFSPRING, SURVIVORS, PATIENCE = 16, 24, 6, 4


def search(decoder: Decoder, tokens: Tokens, removal: Removal, *, progress: Progress = silent) -> Plan:
    """Search for the set of layers with the lowest KL divergence; held-out samples judge the best sets and the tail."""
    check_enough(tokens, f"ask for more samples, such as 32, or {HELD_OUT} at the least")
    fitting, held_out = split(tokens)

    def measure(some: Tokens, sets: Iterable[SkippedLayers], stage: str) -> dict[SkippedLayers, float]:
        spec = MeasurementSpec([METRICS["kl"]], singles=False, sets=[*dict.fromkeys(sets)])
        run = Measurement(decoder, some, spec, progress=progress, stage=stage).go()
        return {cut: checked(run.distance(cut), f"kl without layers {show_layers(sorted(cut))}") for cut in spec.sets}

    named, likely = _beginnings(decoder, fitting, removal, progress)
    known, rng, quiet = measure(fitting, named.values(), "beginning"), random.Random(removal.seed), 0
    for generation in range(1, GENERATIONS + 1):
        new, before = _offspring(_best(known), likely, known, rng), min(known.values())
        known |= measure(fitting, new, f"generation {generation}")
        quiet = quiet + 1 if min(known.values()) >= before else 0
        if quiet == PATIENCE or not new:
            break
    named["tail"] = frozenset(removal.allowed[-removal.amount :])
    judged = measure(held_out, [*_best(known), *named.values()], "held out")
    named = {"search": _best(judged)[0], **named}
    removed, candidates = tuple(sorted(named["search"])), {name: judged[cut] for name, cut in named.items()}
    return Plan(len(decoder.layers), removed, "search by kl", candidates=candidates, measure=MEASURED)


def _beginnings(
    decoder: Decoder, tokens: Tokens, removal: Removal, progress: Progress
) -> tuple[dict[str, SkippedLayers], Sequence[int]]:
    """Return named sets to begin with, and the layers to exchange for others, likeliest first."""
    amount, allowed = removal.amount, removal.allowed
    spec = MeasurementSpec([METRICS[name] for name in ("ppl", "kl", "bi")], amount)
    scores = (run := Measurement(decoder, tokens, spec, progress=progress).go()).scores()
    named = {f"lowest {name}": frozenset(lowest(scores[name], allowed, amount)) for name in scores}
    named["block kl"] = frozenset(lowest_window(run.block_scores()["kl"], allowed, amount))
    return named, sorted(allowed, key=lambda layer: (scores["kl"][layer], layer))[: max(3 * amount, amount + 4)]


def _offspring(
    parents: Sequence[SkippedLayers], likely: Sequence[int], known: Mapping[SkippedLayers, float], rng: random.Random
) -> list[SkippedLayers]:
    """Exchange one layer of a parent for another that is likely, sometimes two."""
    children = dict[SkippedLayers, None]()
    for _ in range(20 * OFFSPRING):  # the neighbourhood may hold no more
        parent = rng.choice(parents)
        others = [layer for layer in likely if layer not in parent]
        many = min(1 + (rng.random() < 0.3), len(others), len(parent))
        child = parent - {*rng.sample(sorted(parent), many)} | {*rng.sample(others, many)}
        children |= {} if child in known else {child: None}
        if len(children) == OFFSPRING:
            break
    return list(children)


def _best(known: Mapping[SkippedLayers, float]) -> list[SkippedLayers]:
    return sorted(known, key=lambda cut: (known[cut], sorted(cut)))[:SURVIVORS]
