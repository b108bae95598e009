"""Checks of a shrink before any of its work: model, cut, output, room, data, texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shortstack.architecture.positions import check_positions
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.checkpoint.weights import check_unquantised
from shortstack.data import Tokens
from shortstack.data.examples import shared_out
from shortstack.data.mixture import check_sources
from shortstack.errors import DataError, ShortstackError, ShortstackWarning
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.options import options_of
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.retention import TRIALS
from shortstack.shrinking.route import Route

CHECKPOINTS = 2  # of the model's size at most, on disk at once for each cut: what was cut, and what was healed


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


def check_shrink(
    checkpoint: Checkpoint, outs: Mapping[Path, Route], options: ShrinkOptions, compute: Compute
) -> int | None:
    """Refuse what cannot end well; returns the windows of each text to measure on (None: all). Writes nothing."""
    check_unquantised(checkpoint, "to refit and to train", "shrink")
    nbytes = disk_bytes(checkpoint, options, len(outs))
    for out, route in outs.items():
        CheckpointWriter(out, source=checkpoint.directory, nbytes=nbytes)
        choice = route.choice.sized(checkpoint.sizes)
        if not options.share:
            choice.like(checkpoint.anatomy.layers)
        if route.turns:
            route.turns.sizes(checkpoint.anatomy.layers)
        _check_data(checkpoint, route)
    pick_device(compute.device)
    for task in options.evaluation_tasks():
        task.check_paired()
        task.load_for(checkpoint)
    _check_calibration(checkpoint, options)
    return _check_texts(checkpoint, options)


def _check_calibration(checkpoint: Checkpoint, options: ShrinkOptions) -> None:
    """Refuse texts that cannot be read, or have fewer windows than are asked for."""
    check_positions(checkpoint, options.length, "text", fix="take a model of more positions")
    with _of("text"):
        for weighted in check_sources(options.text):
            if not weighted.endless:
                Tokens.read(weighted.source, checkpoint.tokenizer(), samples=options.samples, length=options.length)


def _check_data(checkpoint: Checkpoint, route: Route) -> None:
    """Refuse data that is not there, or of which nothing would be left to train on."""
    if route.healing is None:
        return
    data, tokenizer = route.healing.data, checkpoint.tokenizer()
    with _of("data"):
        data.check()
        _, wanted = shared_out(data.source, tokenizer, data.max_length, 0, data.max_samples or 10**8)
    fewer = f", or write a recipe that holds out fewer than the {data.held_out} samples of {route.name}"
    with _of("data", f"give more data{fewer if data.held_out else ''}"):
        data.held_out_of(sum(wanted.values()))


def _check_texts(checkpoint: Checkpoint, options: ShrinkOptions) -> int | None:
    """Count windows of each text to measure on: as many as were asked for, or as the shortest text has; None: all."""
    text = options.evaluation_text(options.windows)
    with _of("perplexity"):
        windows = text.read(checkpoint.tokenizer(), seed=0, at_least=1)
    counts = {name: len(tokens.ids) for name, tokens in windows.items()}
    shortest = min(counts, key=counts.__getitem__)
    if options.windows is None:
        return None
    if counts[shortest] < max(counts.values()):
        said = f"{shortest} has {counts[shortest]} windows of {text.length} tokens: every text is measured on as many"
        warnings.warn(said, ShortstackWarning, stacklevel=4)
    return counts[shortest]


@contextmanager
def _of(option: str, fix: str = "") -> Iterator[None]:
    """Attribute errors about a text to the option that named it; fix: the remedy, if the usual one is no option here."""
    try:
        yield
    except DataError as error:
        raise error.but(option=option, where=error.where or error.option, fix=fix or error.fix) from error
