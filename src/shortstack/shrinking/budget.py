"""What fits into the minutes: one measured speed and one formula give windows, samples and items.

A pass is one window of WINDOW tokens forward through the base model. Costs are in passes.

>>> fit(Budget(), 300.0, speed=2000.0, layers=30).windows
8
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from shortstack.errors import InputError
from shortstack.machine.clock import Clock
from shortstack.machine.formats import duration

WINDOW = 128  # tokens of a calibration window
TEXT_WINDOW = 512  # tokens of a window that perplexity is measured on
PROBE_PASSES = 12  # of one item of each probe: JSON is written token by token
DOCUMENT_PASSES = 2.4  # of a task's document with all its answers
WRITING_PASSES = 180  # in whose time the least text of its own is written, token by token
SPEED_PASSES = 60  # of timing both models, and of their answers to the prompts
LEAST_HEALING_PASSES = 160  # of five steps of eight samples with a teacher, and of three held-out losses

CHOOSING, REPAIRING, WRITING = 0.3, 0.18, 0.18  # shares of the time; healing has what is left
MEASURING = 0.03  # of the time, for each of texts, probes and tasks of one model
MARGIN = 1.0  # times what is counted for the fewest minutes
CONCLUDING = 6.0  # seconds for card and report
SHORTER = ((128, 4), (64, 4), (32, 4))  # (tokens, windows of each text) that choosing falls back to
MOST_WINDOWS = 128  # of each text that layers are chosen on


@dataclass(frozen=True)
class Budget:
    """Amounts of work. windows, length: of each calibration text; candidates: cuts that are repaired before one is chosen;
    repair_windows: of all texts together; own_text: whether the base model writes a calibration text itself;
    perplexity_windows, probe_items, documents: of each text, probe and task, for both models.
    """

    windows: int = 16
    length: int = WINDOW
    candidates: int = 5
    repair_windows: int = 1024
    own_text: bool = True
    perplexity_windows: int = 64
    probe_items: int = 20
    documents: int | float = 200

    def reduced(self, wanted: Budget) -> dict[str, tuple[object, object]]:
        """Return (used, wanted) of every amount that the time limit reduced."""
        pairs = {field.name: (getattr(self, field.name), getattr(wanted, field.name)) for field in fields(self)}
        return {name: (used, most) for name, (used, most) in pairs.items() if used < most}


@dataclass(frozen=True)
class Load:
    """What the amounts are for: calibration texts, texts to repair on, texts and tasks to measure; cuts that are tried.

    most_windows: of each calibration text, where there is time for more than are wanted.
    """

    sources: int = 4
    repair_sources: int = 4
    texts: int = 1
    tasks: int = 0
    probes: bool = True
    cuts: int = 1
    repairs: bool = True
    chooses: bool = True
    heals: bool = True
    most_windows: int = 0


def choosing_passes(windows: float, candidates: int) -> float:
    """Count the passes of choosing by repaired blocks on so many windows of all texts.

    From timed choices of 4 and 8 layers of 30 (SmolLM2, bf16, 2026-11-29), with a fifth more for noise.
    """
    return 1.2 * (min(170, 10.6 * windows) + 18 * windows + candidates * (100 + 4 * windows))


def repair_passes(windows: float) -> float:
    """Count the passes of repairing a cut on so many windows of all texts."""
    return min(97, 5 * windows) + 3 * windows


def fit(wanted: Budget, seconds: float, *, speed: float, layers: int, load: Load | None = None) -> Budget:
    """Return as much of the wanted amounts as fits into the seconds. speed: tokens a second through the base model."""
    load = load or Load()
    passes = seconds * speed / WINDOW / load.cuts
    scaled = passes * 30 / layers  # choosing and repair grow with the layers once more, what is measured does not
    most = max(wanted.windows, load.most_windows)
    windows, length, candidates = _choosing(replace(wanted, windows=most), CHOOSING * scaled, load.sources)
    repair = max(8 * load.repair_sources, math.floor((REPAIRING * scaled - 97) / 3))
    texts, items, documents = (
        MEASURING * passes / cost
        for cost in (load.texts * TEXT_WINDOW / WINDOW, PROBE_PASSES, max(1, load.tasks) * DOCUMENT_PASSES)
    )
    return replace(
        wanted,
        windows=windows,
        length=length,
        candidates=candidates,
        own_text=wanted.own_text and WRITING * passes * load.cuts >= WRITING_PASSES,
        repair_windows=min(wanted.repair_windows, repair),
        perplexity_windows=min(wanted.perplexity_windows, max(2, int(texts))),
        probe_items=min(wanted.probe_items, max(4, int(items))) if wanted.probe_items else 0,
        documents=min(wanted.documents, max(2, int(documents))) if wanted.documents else 0,
    )


def least_seconds(wanted: Budget, *, speed: float, layers: int, load: Load) -> float:
    """Count the seconds of the least work that still chooses, repairs, heals and measures."""
    few = 4 * load.sources * 32 / WINDOW
    repaired = 8 * load.repair_sources * 32 / WINDOW
    passes = load.chooses * choosing_passes(few, 0) + load.repairs * repair_passes(repaired)
    passes = load.cuts * (passes * layers / 30 + load.heals * LEAST_HEALING_PASSES + SPEED_PASSES)
    measuring = 8 * load.texts + 4 * PROBE_PASSES * bool(wanted.probe_items) + 2 * DOCUMENT_PASSES * load.tasks
    return MARGIN * (passes + (1 + load.cuts) * measuring) * WINDOW / speed + CONCLUDING


def check_minutes(clock: Clock, least: float) -> None:
    """Refuse a time limit that leaves less than the least work takes."""
    if clock.left < least:
        minutes = math.ceil((clock.used + least) / 60)
        allow = f"allow {minutes} minute{'s' * (minutes > 1)}"
        raise InputError(f"{duration(clock.seconds)} is too short on this machine; {allow}", option="minutes")


def _choosing(wanted: Budget, passes: float, sources: int) -> tuple[int, int, int]:
    """Return windows of each text, their length, and candidates, the most thorough that fit into so many passes."""
    options = [
        (windows, wanted.length, candidates)
        for candidates in sorted({wanted.candidates, min(3, wanted.candidates), 0}, reverse=True)
        for windows in _halved(wanted.windows)
        if windows >= 8 or not candidates
    ]
    shorter = [(windows, length, 0) for length, windows in SHORTER if length <= wanted.length]
    for windows, length, candidates in [*options, *shorter]:
        if choosing_passes(windows * sources * length / WINDOW, candidates) <= passes:
            return windows, length, candidates
    return min(4, wanted.windows), min(32, wanted.length), 0


def _halved(most: int) -> list[int]:
    """Return the most, then half as many as long as at least four are left."""
    amounts = [most]
    while amounts[-1] >= 8:
        amounts.append(amounts[-1] // 2)
    return amounts
