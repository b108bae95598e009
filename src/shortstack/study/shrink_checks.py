"""What can be known to be wrong with a shrink, said before any of its work: model, cut, output, room, data, texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shortstack.architecture.positions import check_positions
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.checkpoint.weights import check_unquantised
from shortstack.data import Tokens
from shortstack.data.examples import expected_samples
from shortstack.data.mixture import check_sources
from shortstack.errors import DataError, InputError, ShortstackError, ShortstackWarning, parameter
from shortstack.evaluation import EvaluationText
from shortstack.evaluation.suites import TASKS, named
from shortstack.healing.options import option_defaults, task_of
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.options import check_choice_of, options_of
from shortstack.planning.layer_sets import FINALISTS, parse_drop
from shortstack.planning.plans import BLOCKS
from shortstack.study.keeping import TRIALS
from shortstack.study.measures import EvaluateOptions
from shortstack.study.minutes import ENDLESS, Amounts
from shortstack.study.references import expanded, open_model
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.trial import RepairText

CHECKPOINTS = 2  # of the model's size at most, on disk at once for each cut: what was cut, and what was healed

OF_WINDOWS = {
    "samples",
    "length",
    "max_length",
    "max_samples",
    "held_out",
}  # of texts and data, which have none of their own


@contextmanager
def in_words_of_shrink() -> Iterator[None]:
    """Errors of the steps name no option that shrink does not have: what the recipe says is changed there."""
    known = {name for group in (ShrinkOptions, Compute) for name, *_ in options_of(group)} | {"output"}
    try:
        yield
    except ShortstackError as error:
        unknown = error.parameters - known
        if not unknown:
            raise
        words = ", ".join(sorted(name.replace("_", " ") for name in unknown & option_defaults().keys()))
        recipe = f", or a recipe of your own with another {words}: {parameter('recipe', 'FILE')}" if words else ""
        fix = f"give more with {parameter('data')}, {parameter('text')} or {parameter('perplexity')}{recipe}"
        raise error.naming_none_of(unknown, error.ways_out(unknown) or fix) from error


def check_shrink(
    model: str, outs: Mapping[str, Path], options: ShrinkOptions, trial: Mapping[str, Any], compute: Compute
) -> Amounts:
    """Refuse what cannot end well; returns how much there is to look at. Writes nothing.

    outs: the outputs, by how much goes. trial: the recipe, for a study.

    Raises:
        OutputError: `out` exists, lies in the model, or the disk has no room.
        CheckpointError: there is no such model.
        PlanError: no such number of layers can go.
        InputError: the device is not there, or the time of tasks cannot be planned.
        DataError: a text is not there or too short, or too few samples are left to train on.
    """
    checkpoint, by_name = open_model(str(expanded(model))), trial["metric"].startswith("layers ")
    check_unquantised(checkpoint, "to refit and to train", "shrink")
    nbytes = CHECKPOINTS * checkpoint.weight_bytes * (TRIALS if options.share else len(outs))
    for out in outs.values():
        CheckpointWriter(out, source=checkpoint.directory, nbytes=nbytes)
    pick_device(compute.device)
    if not by_name:
        for drop in outs:
            parse_drop(drop, checkpoint.anatomy.layers)
    elif options.share:
        where, expected = parameter("keep", options.keep), "a recipe that says how layers are chosen"
        raise InputError(where, expected=expected, found=trial["metric"], fix=f"leave {parameter('keep')} out")
    _check_tasks(options)
    _check_calibration(checkpoint, options)
    samples = _samples(checkpoint, trial["heal"]) if isinstance(trial["heal"], Mapping) else 0
    finalists = FINALISTS if trial["metric"] == BLOCKS else 0
    judged = _judged(checkpoint, options)
    return Amounts(options.samples, finalists, RepairText().samples, samples, judged, options.judged is None)


def _check_tasks(options: ShrinkOptions) -> None:
    """Refuse tasks that are unknown, or whose documents are not in a folder: nobody knows how long those take."""
    if options.tasks is None:
        return
    for name in named(options.tasks):
        check_choice_of("tasks", name, TASKS)
        if options.data_dir is None:
            fix = f"add {parameter('data_dir', 'FOLDER')}"
            expected = "the folder of its documents, to plan the minutes"
            raise InputError(parameter("tasks", name), expected=expected, found="none", fix=fix)
    EvaluateOptions.model_validate(options.asked_tasks).check()


def _check_calibration(checkpoint: Checkpoint, options: ShrinkOptions) -> None:
    """Refuse texts that cannot be read, or have fewer windows than are asked for."""
    check_positions(checkpoint, options.length, parameter("text"), fix="take a model of more positions")
    with _of("text", f"give a longer text, or fewer {parameter('samples')}"):
        for each in check_sources(options.text):
            if not each.endless:
                Tokens.read(each.source, checkpoint.tokenizer(), samples=options.samples, length=options.length)


def _samples(checkpoint: Checkpoint, heal: Mapping[str, Any]) -> int:
    """Read what is learnt from, and count it; ENDLESS of what has no end."""
    data = task_of(heal).data
    most = data.max_samples or ENDLESS
    with _of("data", f"check the data, or name other: {parameter('data', 'FILE')}"):
        data.check()
        count = expected_samples(data.source, checkpoint.tokenizer(), max_length=data.max_length, most=most)
        data.held_out_of(count)
    return count


def _judged(checkpoint: Checkpoint, options: ShrinkOptions) -> int:
    """Windows of each text to measure on: as many as were asked for, or the shortest text has; of all texts the mean."""
    text = EvaluationText(options.texts, samples=options.judged)
    with _of("perplexity", "give a longer text"):
        windows = text.read(checkpoint.tokenizer(), seed=0, at_least=1)
    counts = {name: len(tokens.ids) for name, tokens in windows.items()}
    shortest = min(counts, key=counts.__getitem__)
    if options.judged is None:
        return round(sum(counts.values()) / len(counts))
    if counts[shortest] < max(counts.values()):
        said = f"{shortest} has {counts[shortest]} windows of {text.length} tokens: every text is measured on as many"
        warnings.warn(said, ShortstackWarning, stacklevel=4)
    return counts[shortest]


@contextmanager
def _of(option: str, fix: str) -> Iterator[None]:
    """What is wrong with a text is said of the option that named it; fix: where what would mend it is no option here."""
    try:
        yield
    except DataError as error:
        told = error.naming_none_of(OF_WINDOWS, fix) if error.parameters & OF_WINDOWS else error
        raise told.of(option) from error
