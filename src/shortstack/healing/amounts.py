"""How many samples there is time for, where healing ends by a clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shortstack.data import Example
from shortstack.data.examples import shared_out, shares
from shortstack.data.mixture import parse_sources
from shortstack.data.sources import OWN
from shortstack.data.tokens import bos_ids, own_windows
from shortstack.healing.dataset import TrainingData
from shortstack.machine.clock import Clock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shortstack.decoder import OwnText

WALK_SHARE = 0.25  # of the time, at most, takes one pass of all samples without gradients: what is frozen, a teacher
WRITING_SHARE = 0.25  # of the time, at most, writes text


def affordable_samples(
    data: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    clock: Clock,
    *,
    speed: float,
    least: int,
    own: OwnText | None,
) -> tuple[int, int]:
    """Count the samples that pass the model in a part of the time, and all that there are or were asked for.

    speed: in tokens a second. least: so many are always taken. own: writes what a source of the model's own needs, as far as
    it comes in another part of the time.
    """
    read, wanted = shared_out(data.source, tokenizer, data.max_length, 0, data.max_samples)
    samples_of = {name: [example for part in parts for example in part] for name, parts in read.items()}
    sources, sizes = parse_sources(data.source), {name: len(examples) for name, examples in samples_of.items()}
    whole, least = sum(wanted.values()), max(least, len(sources))
    tokens = sum(amount * _length(samples_of.get(name, ()), data.max_length) for name, amount in wanted.items())
    samples = min(whole, max(least, math.floor(whole * WALK_SHARE * clock.left * speed / tokens)))
    if OWN in wanted and own:
        written = replace(own, deadline=clock.next(WRITING_SHARE)).texts
        amount = shares(sources, sizes, samples)[OWN]
        windows = own_windows(written, data.max_length - len(bos_ids(tokenizer)), amount)
        while samples > least and shares(sources, sizes, samples)[OWN] > len(windows):
            samples -= 1
    return samples, whole


def _length(examples: Sequence[Example], most: int) -> float:
    """Count the tokens of an average sample; the most where samples are written as they are read."""
    return sum(len(example.ids) for example in examples) / len(examples) if examples else most
