"""The last layers cut at some depths: what a cut that looks at nothing costs, beside which a shrink's page sets its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers
from shortstack.machine.progress import Progress, silent
from shortstack.scoring.measurement import Run, Wanted
from shortstack.scoring.metrics import METRICS

WINDOWS, DEPTHS = 2, 8  # of the text; of the curve, to half of the layers


def few(tokens: Tokens) -> Tokens:
    """The first windows of a text: enough to see a curve, and no time to speak of."""
    counted = None if tokens.counted is None else tokens.counted[:WINDOWS]
    return replace(tokens, ids=tokens.ids[:WINDOWS], counted=counted)


def depths(layers: int, amounts: Collection[int]) -> list[int]:
    """How many of the last layers go at each point of the curve: none, DEPTHS numbers to half of them, and `amounts`.

    >>> depths(30, [8])
    [0, 2, 4, 6, 8, 9, 11, 13, 15]
    >>> depths(4, [3])
    [0, 1, 2, 3]
    """
    even = {max(1, round(layers // 2 * place / DEPTHS)) for place in range(1, DEPTHS + 1)}
    return sorted({0, *even, *amounts})


def measured_tails(
    decoder: Decoder, tokens: Tokens, cuts: Sequence[SkippedLayers], *, progress: Progress = silent
) -> tuple[dict[int, float], list[float]]:
    """The loss without so many of the last layers, and without each cut, nothing repaired, in nats per token; one walk."""
    layers = len(decoder.layers)
    removed = depths(layers, [len(cut) for cut in cuts])
    tails = [frozenset(range(layers - amount, layers)) for amount in removed]
    wanted = Wanted([METRICS["ppl"]], singles=False, sets=[UNPRUNED, *tails, *cuts])
    run = Run(decoder, tokens, wanted, progress=progress, stage="the last layers cut").go()
    return {len(tail): run.loss(tail) for tail in tails}, [run.loss(cut) for cut in cuts]
