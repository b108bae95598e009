"""What can be known to be wrong with a shrink, said before any of its work: model, cut, output, room, data, texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from shortstack.architecture.positions import check_positions
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.data import Tokens
from shortstack.data.examples import expected_samples
from shortstack.data.mixture import check_sources
from shortstack.errors import DataError, ShortstackError, parameter
from shortstack.evaluation import EvaluationText
from shortstack.healing.options import option_defaults, task_of
from shortstack.machine.device import Compute
from shortstack.planning.layer_sets import FINALISTS, parse_drop
from shortstack.planning.plans import BLOCKS
from shortstack.study.kinds import EvaluateOptions
from shortstack.study.minutes import ENDLESS, Amounts
from shortstack.study.references import expanded, open_model
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.trial import RepairText

CHECKPOINTS = 2  # of the model's size at most, on disk at once: what was cut, and what was healed


@contextmanager
def in_words_of_shrink() -> Iterator[None]:
    """Errors of the steps name no option that shrink does not have: what the recipe says is changed there."""
    known = {each.name for group in (ShrinkOptions, Compute) for each in fields(group)} | {"output"}
    try:
        yield
    except ShortstackError as error:
        unknown = error.parameters - known
        if not unknown:
            raise
        words = ", ".join(sorted(name.replace("_", " ") for name in unknown & option_defaults().keys()))
        recipe = f", or a recipe of your own with another {words}: {parameter('recipe', 'FILE')}" if words else ""
        fix = f"give more with {parameter('data')}, {parameter('text')} or {parameter('perplexity')}{recipe}"
        raise error.naming_none_of(unknown, fix) from error


def check_shrink(model: str, out: Path, options: ShrinkOptions, trial: Mapping[str, Any]) -> Amounts:
    """Refuse what cannot end well; returns how much there is to look at. Writes nothing. trial: the recipe, for a study.

    Raises:
        OutputError: `out` exists, lies in the model, or the disk has no room.
        CheckpointError: there is no such model.
        PlanError: no such number of layers can go.
        DataError: a text is not there or too short, or too few samples are left to train on.
    """
    checkpoint = open_model(str(expanded(model)))
    CheckpointWriter(out, source=checkpoint.directory, nbytes=CHECKPOINTS * checkpoint.weight_bytes)
    if not trial["metric"].startswith("layers "):
        parse_drop(trial["drop"], checkpoint.anatomy.layers)
    check_positions(checkpoint, options.length, parameter("length"), fix="take a model of more positions")
    for each in check_sources(options.text):
        if not each.endless:
            Tokens.read(each.source, checkpoint.tokenizer(), samples=options.samples, length=options.length)
    samples = _samples(checkpoint, trial["heal"]) if isinstance(trial["heal"], Mapping) else 0
    EvaluateOptions.model_validate(options.asked_tasks).check()
    finalists = FINALISTS if trial["metric"] == BLOCKS else 0
    return Amounts(options.samples, finalists, RepairText().samples, samples, _judged(checkpoint, options))


def _samples(checkpoint: Checkpoint, heal: Mapping[str, Any]) -> int:
    """Read what is learnt from, and count it; ENDLESS of what has no end."""
    data = task_of(heal).training_data
    data.check()
    most = data.max_samples or ENDLESS
    try:
        count = expected_samples(data.source, checkpoint.tokenizer(), max_length=data.max_length, most=most)
        data.held_out_of(count)
    except DataError as error:
        raise error.fixed_by(f"check the data, or name other: {parameter('data', 'FILE')}") from error
    return count


def _judged(checkpoint: Checkpoint, options: ShrinkOptions) -> int | None:
    """Windows of each text to measure on: as many as were asked for, or the shortest text has; None: all."""
    text = EvaluationText(options.texts, samples=options.judged)
    tokens = text.read(checkpoint.tokenizer(), seed=0, at_least=1)
    return options.judged and min(len(each.ids) for each in tokens.values())
