"""Keep it or not: what a shortened model keeps of writing and of likelihood, said with the numbers that decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortstack.machine.formats import number

# Shares of the unpruned model's mean over the probes, and multiples of its perplexity, between which nobody but its
# user can say. docs/shrink.md names them.
KEPT, LOST = 0.8, 0.5
NEAR, FAR = 1.5, 3.0
WORDS = {True: "Keep it.", False: "Do not keep it.", None: "Try it on your own tasks before you keep it."}


@dataclass(frozen=True)
class Verdict:
    """keep: None where the numbers lie between. reasons: the sentences with the numbers."""

    keep: bool | None
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join([WORDS[self.keep], *self.reasons])


def verdict(base: Mapping[str, Any], last: Mapping[str, Any]) -> Verdict:
    """From the evaluations of the unpruned model and of the shortened one, as evaluate() has them as data.

    It is kept where it has not collapsed, has KEPT of what the unpruned model has right of the probes, and at most NEAR
    times its perplexity on each text; and not where one of them is beyond LOST or FAR.
    """
    text, times = max(
        ((text, each["value"] / base["perplexity"][text]["value"]) for text, each in last["perplexity"].items()),
        key=lambda each: each[1],
    )
    good, bad, reasons = (
        times <= NEAR,
        times > FAR,
        [f"Perplexity on {text} is {times:.2f} times the unpruned model's."],
    )
    probes = _mean(base["probes"]), _mean(last["probes"])
    if probes[0][0]:
        (before, _), (after, error) = probes
        share = after / before
        good, bad = good and share >= KEPT, bad or share < LOST
        right = f"{number(after)} ± {number(error)} are right, where the unpruned model has {number(before)}"
        reasons.append(f"Of small writing tasks {right}.")
    if last["collapse"] and last["collapse"]["collapsed"]:
        bad = True
        reasons.append(f"What it writes has collapsed: {last['collapse']['sample']}.")
    return Verdict(False if bad else True if good else None, tuple(reasons))


def _mean(probes: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """The mean accuracy over probes and its standard error; nothing where there are none."""
    values: Sequence[Mapping[str, float]] = list(probes.values())
    if not values:
        return 0.0, 0.0
    error = math.sqrt(sum(each["stderr"] ** 2 for each in values)) / len(values)
    return sum(each["value"] for each in values) / len(values), error
