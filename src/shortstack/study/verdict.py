"""Keep it or not: what a shortened model keeps of writing and likelihood, its speed, and what int8 would give instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shortstack.evaluation.degeneration import Collapse
from shortstack.machine.formats import number, size
from shortstack.study.beside import Beside
from shortstack.study.keeping import Share, mean, ratio, shares_of

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


def verdict(base: Mapping[str, Any], last: Mapping[str, Any], beside: Beside | None = None) -> Verdict:
    """From the evaluations of the unpruned model and of the shortened one, as evaluate() has them as data.

    It is kept where it has not collapsed beside what the unpruned model writes, has KEPT of what that has right of the
    probes, and at most NEAR times its perplexity on each text; and not where one of them is beyond LOST or FAR. Tasks, speed
    and int8 are said.
    """
    text, times = max(
        ((text, _times(each["value"], base["perplexity"][text]["value"])) for text, each in last["perplexity"].items()),
        key=lambda each: each[1],
    )
    good, bad = times <= NEAR, times > FAR
    reasons = [f"Perplexity on {text} is {times:.2f} times the unpruned model's."]
    before, after = Share(*mean(base["probes"])), Share(*mean(last["probes"]))
    if before.value:
        kept = ratio(before, after)
        good, bad = good and kept.value >= KEPT, bad or kept.value < LOST
        reasons.append(_said("small writing tasks", before, after))
    tasks = shares_of(last.get("tasks") or {})
    if tasks:
        reasons.append(_said(", ".join(tasks), Share(*mean(shares_of(base["tasks"]))), Share(*mean(tasks))))
    collapse = _collapse(base, last)
    if collapse and collapse.fallen:
        bad = True
        reasons.append(f"What it writes has collapsed: {collapse.sample}.")
    return Verdict(False if bad else True if good else None, (*reasons, *(_beside(beside, last) if beside else ())))


def _collapse(base: Mapping[str, Any], last: Mapping[str, Any]) -> Collapse | None:
    """What it writes, judged by what the unpruned model does, where both were looked at."""
    if not last["collapse"]:
        return None
    ours = Collapse.of(last["collapse"])
    return ours.against(Collapse.of(base["collapse"])) if base.get("collapse") else ours


def _said(what: str, before: Share, after: Share) -> str:
    """How much is right of something, with standard errors, and which share of the unpruned model's that is."""
    kept = f": {ratio(before, after)} of it is kept" if before.value else ""
    return f"Of {what} {after} are right, where the unpruned model has {before}{kept}."


def _times(perplexity: float | None, unpruned: float) -> float:
    """How many times as large a perplexity is; one beyond all numbers, which JSON has as null, is infinitely so."""
    times = math.inf if perplexity is None else perplexity / unpruned
    return math.inf if math.isnan(times) else times


def _beside(beside: Beside, last: Mapping[str, Any]) -> list[str]:
    """What is said of its speed, and of the unpruned model in int8."""
    said = []
    if beside.speed:
        decode, prefill = beside.speed["decode"], beside.speed["prefill"]
        said.append(
            f"It writes {decode['value']:.2f} times as fast as the unpruned model ({decode['low']:.2f} to "
            f"{decode['high']:.2f}) and reads {prefill['value']:.2f} times as fast."
        )
    int8 = beside.int8
    if int8.bytes is None or not int8.perplexity:
        return [*said, f"What the unpruned model gives in int8 is not known: {int8.reason}."]
    texts = " and ".join(
        f"{number(value)} on {text}, where this one has {number(_times(last['perplexity'][text]['value'], 1.0))}"
        for text, value in int8.perplexity.items()
    )
    better = int8.bytes <= beside.bytes and all(
        value <= _times(last["perplexity"][text]["value"], 1.0) for text, value in int8.perplexity.items()
    )
    told = (
        f"The unpruned model in int8 takes {size(int8.bytes)}, this one {size(beside.bytes)}; its perplexity is {texts}"
    )
    return [*said, f"{told}: where bytes are all that counts, int8 is better." if better else f"{told}."]
