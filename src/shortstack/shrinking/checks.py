"""Checks of a shrink before any of its work: model, output, disk, memory, data, texts, tasks; and what they let be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.checkpoint.weights import check_unquantised
from shortstack.data import Text, Tokens
from shortstack.data.tokens import JUDGING
from shortstack.decoder.memory import estimate_memory
from shortstack.errors import DataError
from shortstack.evaluation.options import load_harness
from shortstack.healing import healing_memory
from shortstack.machine.device import Compute
from shortstack.machine.memory import Memory
from shortstack.planning.measured import selection_memory
from shortstack.planning.selection import layers_to_remove
from shortstack.repairing.repairer import repair_memory
from shortstack.shrinking.budget import MOST_WINDOWS, Budget, Load
from shortstack.shrinking.options import DOCUMENTS, ShrinkOptions
from shortstack.shrinking.retention import TRIALS
from shortstack.shrinking.settings import Settings

GENERATING = 8  # times as long as one of multiple choice takes a task whose answers are generated
CHECKPOINTS = 3  # of the model's size on the disk at once: the cut, what healing changed, and the result


@dataclass(frozen=True)
class Checked:
    """What a shrink works on. calibration, repair: texts, with what heals where it has enough windows.

    load: for the budget. subtasks: of each group of tasks. notes: on data that is too short.
    """

    calibration: Text
    repair: Text | None
    wanted: Budget
    load: Load
    subtasks: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def digests(self) -> list[str]:
        return [text.digest for text in (self.calibration, self.repair) if text]


def check(base: Checkpoint, out: Path, settings: Settings, options: ShrinkOptions, compute: Compute) -> Checked:
    """Refuse what cannot end well, before anything is written.

    Raises:
        CheckpointError: the weights are quantised.
        InputError: the model does not fit in memory.
        OutputError: the output lies in the model, or the disk has no room.
        DataError: a text cannot be read, or has too few windows.
    """
    check_unquantised(base, "to refit and to train", "shrink")
    writing_memory(base, compute).check(f"shrinking {base.source}")
    CheckpointWriter(
        out, source=base.directory, nbytes=CHECKPOINTS * base.weight_bytes * (TRIALS if options.share else 1)
    )
    if settings.healing:
        settings.healing.check()
    wanted = _wanted(settings, options)
    counts = _windows(base, settings, wanted)
    calibration, repair, notes = _with_data(settings, options, wanted, counts)
    tasks, subtasks = _tasks(options)
    most = min((counts[source.name] for source in calibration.sources if source.name in counts), default=MOST_WINDOWS)
    load = Load(
        sources=len(calibration.sources),
        repair_sources=len(repair.sources) if repair else 0,
        texts=len(options.perplexity),
        tasks=tasks,
        cuts=TRIALS if options.share else 1,
        repairs=settings.repair,
        chooses=settings.selection.needs_text,
        heals=settings.healing is not None,
        most_windows=0 if "windows" in settings.stated else most,
    )
    texts = options.evaluation(options.perplexity_samples, 0, 0).read_texts(base.tokenizer(), compute.seed, at_least=1)
    wanted = replace(wanted, perplexity_windows=min(len(tokens.ids) for tokens in texts.values()))
    return Checked(calibration, repair, wanted, load, subtasks, tuple(notes))


def _wanted(settings: Settings, options: ShrinkOptions) -> Budget:
    """Return the amounts without a time limit."""
    wanted: dict[str, Any] = {"candidates": settings.selection.candidates, **settings.stated}
    documents = (options.limit or DOCUMENTS) if options.tasks else 0
    measured: dict[str, Any] = {"perplexity_windows": options.perplexity_samples, "probe_items": options.probe_items}
    return Budget(**wanted, **measured, documents=documents)


def _windows(base: Checkpoint, settings: Settings, wanted: Budget) -> dict[str, int]:
    """Count the windows that each text has, up to MOST_WINDOWS; a calibration text that has too few is an error."""
    tokenizer, most = base.tokenizer(), max(MOST_WINDOWS, wanted.windows)
    calibration = {source.name for source in settings.calibration.sources}
    counts = {}
    looked_at = settings.calibration if settings.repair or settings.selection.needs_text else None
    for text in (looked_at, settings.repair_text, settings.healing and settings.healing.text):
        for source in text.sources if text else ():
            if not source.endless and source.name not in counts:
                least = wanted.windows if source.name in calibration else 0
                counts[source.name] = _count(source.name, tokenizer, most, wanted.length, least)
    return counts


def _count(source: str, tokenizer: Any, most: int, length: int, least: int) -> int:
    try:
        return len(Tokens.read(source, tokenizer, samples=most, length=length, at_least=max(1, least)).ids)
    except DataError:
        if least:
            raise
        return 0  # it heals alone; what is wrong with it as data to heal on, healing says


def _with_data(
    settings: Settings, options: ShrinkOptions, wanted: Budget, counts: Mapping[str, int]
) -> tuple[Text, Text | None, list[str]]:
    """Return the texts to choose and to repair on, with what heals if it has enough windows; and notes."""
    calibration, healed = settings.calibration, settings.healing.text.sources if settings.healing else ()
    names = [source.name for source in healed if source.name in counts]
    notes: list[str] = []

    def enough(least: int, purpose: str) -> list[str]:
        few = [name for name in names if counts[name] < least]
        notes.extend(f"{purpose} {name}: it has fewer than {least} texts of {wanted.length} tokens." for name in few)
        return [name for name in names if name not in few]

    repair = settings.repair_text or (
        calibration.adding(enough(JUDGING, "The cut is not repaired on")) if settings.repair else None
    )
    named = options.calibration_data or settings.recipe.plan.calibration_data
    if settings.repair and settings.selection.needs_text and not named:
        calibration = calibration.adding(enough(max(wanted.windows, JUDGING), "Layers are not chosen on"))
    return calibration, repair, notes


def _tasks(options: ShrinkOptions) -> tuple[int, dict[str, int]]:
    """Count the tasks, generating ones for several, and the subtasks of each group."""
    if not options.tasks:
        return 0, {}
    loaded = load_harness().load(options.evaluation(0, 0, options.limit or DOCUMENTS))
    return sum(GENERATING if task.generates else 1 for task in loaded), {task.name: len(task.tasks) for task in loaded}


def writing_memory(base: Checkpoint, compute: Compute) -> Memory:
    """Estimate the memory of generating answers, for which all layers are loaded."""
    return estimate_memory(base, replace(compute, stream=False), writes=True)


def needed_memory(base: Checkpoint, settings: Settings, checked: Checked, compute: Compute) -> Memory:
    """Estimate the memory of the most demanding stage: selecting, repairing, healing or generating."""
    wanted, layers = checked.wanted, base.anatomy.layers
    amount = layers // 2 if checked.load.cuts > 1 else layers_to_remove(settings.selection, layers, base.sizes)
    selecting = wanted.windows * wanted.length * checked.load.sources
    stages = [
        writing_memory(base, compute),
        selection_memory(base, replace(settings.selection, candidates=wanted.candidates), amount, selecting, compute),
    ]
    if checked.repair:
        stages.append(repair_memory(base, wanted.repair_windows * wanted.length, compute))
    if healing := settings.healing_of(compute):
        stages.append(healing_memory(base, healing))
    return max(stages)


def needed_disk(base: Checkpoint, checked: Checked) -> int:
    """Count the bytes of what lies on the disk at once."""
    return CHECKPOINTS * base.weight_bytes * checked.load.cuts
