"""Checks of a shrink before any of its work: model, cut, output, room, data, texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from shortstack.architecture.anatomy import check_positions
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.checkpoint.weights import check_unquantised
from shortstack.data import Tokens
from shortstack.data.mixture import check_sources, parse_sources
from shortstack.data.sources import OWN
from shortstack.data.tokens import JUDGING
from shortstack.decoder.requirements import writing_requirements
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import DataError, ShortstackError, ShortstackWarning
from shortstack.evaluation import load_harness
from shortstack.healing.preview import preview
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.memory import Requirements, available_memory
from shortstack.machine.options import options_of
from shortstack.planning.selection import layers_to_remove
from shortstack.repairing.repairer import STREAMS, repair_memory
from shortstack.shrinking.clock import LEVELS, Amounts
from shortstack.shrinking.options import LIMIT, ShrinkOptions
from shortstack.shrinking.retention import TRIALS
from shortstack.shrinking.route import Route
from shortstack.shrinking.stages import folder_of

ROOM = "a larger machine; plan, prune and repair read such a model layer by layer"
GENERATING = 8  # times as long as one of multiple choice takes a task whose answers are generated, token by token
LOOKED_AT = 256  # samples to heal on, in a check
LITTLE = 256  # windows to repair on where memory does not hold all
CHECKPOINTS = (
    3  # of the model's size at most, on disk at once for each cut: what was cut, what healing changed, and the result
)


@contextmanager
def in_words_of_shrink() -> Iterator[None]:
    """Name the recipe where an error is about an option of a stage that shrink does not have."""
    known = {name for group in (ShrinkOptions, Compute) for name, *_ in options_of(group)} | {"output", ""}
    try:
        yield
    except ShortstackError as error:
        if error.option in known:
            raise
        raise error.but(option="recipe", where=error.place(error.option)) from error


def disk_bytes(checkpoint: Checkpoint, options: ShrinkOptions, cuts: int) -> int:
    """Count the bytes that lie on the disk at once, at most."""
    return CHECKPOINTS * checkpoint.weight_bytes * (TRIALS if options.share else cuts)


@dataclass(frozen=True)
class CheckResult:
    """A shrink that can be done. wanted: as much as is looked at where there is time enough; most: windows of each text to
    choose on, where there is time for more of them.

    tasks: how many, generating ones for several; documents: of each, at most; parts: how many tasks each group is of. notes,
    repair_notes: sentences on what is less for want of data or memory, for choosing layers and for repairing the cut.
    """

    wanted: Amounts
    most: int
    tasks: int
    documents: int
    needed: Requirements
    notes: tuple[str, ...] = ()
    repair_notes: tuple[str, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)


def check_shrink(
    checkpoint: Checkpoint,
    outs: Mapping[Path, Route],
    options: ShrinkOptions,
    compute: Compute,
    *,
    made: Collection[Path] = (),
    present: int = 0,
) -> CheckResult:
    """Refuse what cannot end well; writes nothing.

    outs: of cuts of one model that differ in size alone. made: those that a run that goes on has made, which count in what
    is decided; present: bytes of it that lie on the disk already.
    """
    check_unquantised(checkpoint, "to refit and to train", "shrink")
    missing = [out for out in outs if out not in made]
    nbytes, device = max(0, disk_bytes(checkpoint, options, len(missing)) - present), pick_device(compute.device)
    checkpoint.check_room(arithmetic(compute.dtype, checkpoint, device), device, fix=f"free memory, or {ROOM}")
    largest = layers = checkpoint.anatomy.layers
    for out in missing:
        CheckpointWriter(out, source=checkpoint.directory, nbytes=nbytes)
    if not options.share:
        largest = max(layers_to_remove(route.choice, layers, checkpoint.sizes) for route in outs.values())
    out, route = missing[0], next(iter(outs.values()))  # data and texts are those of all
    needed, wanted = writing_requirements(checkpoint, compute), route.wanted(options)
    most, notes, repair_notes = wanted.windows, tuple[str, ...](), tuple[str, ...]()
    _check_calibration(checkpoint, wanted)
    if route.repair:
        count = _counting(checkpoint, wanted)
        wanted, notes, repair_notes = _with_data(route, options, wanted, count)
        wanted, little, repairing = _held_by_memory(checkpoint, route, wanted, compute)
        needed, repair_notes = needed.then(repairing), (*repair_notes, *little)
        most = options.samples or _most(wanted, largest, count)
    if route.healing:
        needed = needed.then(_check_healing(checkpoint, out, route, compute))
        notes = (*notes, *_not_healed_on(route))
    tasks, documents, parts = _check_tasks(options)
    windows, needed = _check_texts(checkpoint, options), replace(needed, disk_bytes=nbytes)
    wanted = replace(wanted, judged=windows)
    return CheckResult(wanted, most, tasks, documents, needed, notes, repair_notes, parts)


def _check_calibration(checkpoint: Checkpoint, amounts: Amounts) -> None:
    """Refuse texts that cannot be read, or have fewer windows than are asked for."""
    check_positions(checkpoint, amounts.length, "text", fix="take a model of more positions")
    with _of("text"):
        for weighted in check_sources(amounts.text):
            if not weighted.endless:
                tokenizer = checkpoint.tokenizer()
                Tokens.read(weighted.source, tokenizer, samples=amounts.windows, length=amounts.length)


def _counting(checkpoint: Checkpoint, amounts: Amounts) -> Callable[[str], int]:
    """Return what counts the windows of a source, up to as many as are ever chosen on: each source is read once."""
    most, length = max(LEVELS[0].windows, amounts.windows), amounts.length

    @cache
    def count(source: str) -> int:
        try:
            return len(Tokens.read(source, checkpoint.tokenizer(), samples=most, length=length, at_least=1).ids)
        except DataError:  # none is long enough; what else may be wrong with data, healing's check says
            return 0

    return count


def _with_data(
    route: Route, options: ShrinkOptions, wanted: Amounts, count: Callable[[str], int]
) -> tuple[Amounts, tuple[str, ...], tuple[str, ...]]:
    """Choose layers and repair on what heals, too, where it has the windows and no text is named; say what has too few."""
    if "repair_text" in route.given:
        with _of("recipe"):
            check_sources(wanted.repair_text)
        return wanted, (), ()
    chosen, listed = parse_sources(wanted.text), parse_sources(wanted.repair_text)
    windows = {each.source: count(each.source) for each in listed if each not in chosen}
    apart = {each.source for each in route.healed_on} - {each.source for each in listed} - {OWN}
    short = [name for name in windows if windows[name] < JUDGING]
    repair_notes = [f"The cut is not repaired on {name}: {_few(JUDGING, wanted)}." for name in short]
    comma = "a name with a comma or = cannot stand in a list of texts."
    repair_notes += [f"The cut is not repaired on {name}: {comma}" for name in sorted(apart)]
    repaired = [name for name in windows if name not in short]
    wanted = replace(wanted, repair_text=",".join([wanted.text, *repaired]))
    if options.text is not None or "text" in route.given or not route.chooses_on_text:
        return wanted, (), tuple(repair_notes)
    least = max(wanted.windows, JUDGING)
    few = [name for name in windows if windows[name] < least]
    enough = [name for name in windows if name not in few]
    notes = [f"Layers are not chosen on {name}: {_few(least, wanted)}." for name in few]
    notes += [f"Layers are not chosen on {name}: {comma}" for name in sorted(apart)]
    return replace(wanted, text=",".join([wanted.text, *enough])), tuple(notes), tuple(repair_notes)


def _not_healed_on(route: Route) -> Iterator[str]:
    """Say that what the recipe heals on is left out, where data of a user's own takes its place."""
    if route.not_healed_on:
        named = ",".join(each.source for each in route.healed_on)
        yield (
            f"It heals on {named} and on none of the recipe's own texts: add ,{route.not_healed_on} to the data to keep "
            "copying and following examples alive, too."
        )


def _held_by_memory(
    checkpoint: Checkpoint, route: Route, wanted: Amounts, compute: Compute
) -> tuple[Amounts, tuple[str, ...], Requirements]:
    """Repair on few windows, and say so, where memory does not hold all; a number that the recipe states stays."""
    repairing = _repair_memory(checkpoint, wanted, compute)
    held = repairing.memory_bytes <= available_memory(pick_device(compute.device))
    if held or wanted.repair <= LITTLE or "repair_samples" in route.given:
        return wanted, (), repairing
    note = f"Memory does not hold {wanted.repair} windows to repair on: {LITTLE} are taken at most."
    wanted = replace(wanted, repair=LITTLE)
    return wanted, (note,), _repair_memory(checkpoint, wanted, compute)


def _repair_memory(checkpoint: Checkpoint, wanted: Amounts, compute: Compute) -> Requirements:
    text = wanted.repair_windows
    return repair_memory(checkpoint, len(parse_sources(text.text)) * int(text.samples) * text.length, compute)


def _few(windows: int, amounts: Amounts) -> str:
    return f"it has fewer than {windows} texts of {amounts.length} tokens"


def _most(wanted: Amounts, largest: int, count: Callable[[str], int]) -> int:
    """Count the windows that every text has, and of which choosing holds no more than repair does.

    largest: layers of the largest block; choosing holds two streams more of all windows.
    """
    sources = parse_sources(wanted.text)
    held = STREAMS * wanted.repair // (max(STREAMS, largest + 2) * len(sources))
    return min([held, *(count(each.source) for each in sources if not each.endless)])


def _check_healing(checkpoint: Checkpoint, out: Path, route: Route, compute: Compute) -> Requirements:
    """Refuse a method that the model does not fit, and data that is not there or of which nothing is left to train on."""
    task = route.healing_of(checkpoint, compute)
    data, held_out = task.data, task.data.held_out
    fewer = f", or write a recipe that holds out fewer than the {held_out} samples of {route.name}" if held_out else ""
    if route.heals_by_clock and data.max_samples is None:  # the clock says how many: the cache need not hold all
        data = replace(data, max_samples=max(LOOKED_AT, 2 * (held_out or 0)))
    with _of("data", f"give more data{fewer}", about="held_out"):
        data.check()
        task = replace(task, data=data)
        return preview(
            checkpoint, folder_of(out) / "healed", task
        ).requirements  # an unfinished heal is in another folder


def _check_tasks(options: ShrinkOptions) -> tuple[int, int, dict[str, int]]:
    """Count the tasks, generating ones for several, the documents of each at most, and how many tasks each group is of."""
    tasks, documents, parts = 0, 0, dict[str, int]()
    for task in options.evaluation_tasks():
        for loaded in load_harness().load(task):
            tasks += GENERATING if loaded.generates else 1
            parts[loaded.name] = len(loaded.tasks)
            documents = max(documents, loaded.documents(task.limit or LIMIT))
    return tasks, documents, parts


def _check_texts(checkpoint: Checkpoint, options: ShrinkOptions) -> int:
    """Count windows of each text to measure on: as many as were asked for, or as the shortest text has."""
    config = options.evaluation(options.perplexity_samples)
    with _of("perplexity"):
        windows = config.read_texts(checkpoint.tokenizer(), seed=0, at_least=1)
    counts = {name: len(tokens.ids) for name, tokens in windows.items()}
    shortest = min(counts, key=counts.__getitem__)
    if counts[shortest] < max(counts.values()):
        said = f"{shortest} has {counts[shortest]} windows of {config.seq_length} tokens: every text is measured on as many"
        warnings.warn(said, ShortstackWarning, stacklevel=4)
    return counts[shortest]


@contextmanager
def _of(option: str, fix: str = "", *, about: str = "") -> Iterator[None]:
    """Attribute errors about a text to the option that named it.

    fix: the remedy of an error about the option `about`, which shrink does not have.
    """
    try:
        yield
    except DataError as error:
        remedy = fix if about and error.option == about else error.fix
        raise error.but(option=option, where=error.where or error.option, fix=remedy) from error
