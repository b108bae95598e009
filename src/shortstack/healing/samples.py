"""The samples of a healing: all that were asked for, or as many as fit the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shortstack.data import Example, Text
from shortstack.data.examples import own_samples, shared_out, shares
from shortstack.data.sources import OWN, is_own
from shortstack.data.tokens import bos_ids, own_windows
from shortstack.healing.budget import WRITTEN, Budget
from shortstack.machine.clock import Clock
from shortstack.machine.numbers import is_share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Write = Callable[[Text, int, Clock | None], Text]  # has the base model write the windows of `self` until a deadline


def full_text(text: Text, tokenizer: PreTrainedTokenizerBase, seed: int, write: Write) -> Text:
    """Return the text with a file in the place of `self`."""
    return write(text, own_samples(text, tokenizer, seed), None) if text.own else text


def fitting_text(
    text: Text, tokenizer: PreTrainedTokenizerBase, seed: int, budget: Budget, clock: Clock, write: Write
) -> Text:
    """Return the text with as many samples as can be prepared in time, and a file in the place of `self`.

    Where the base model writes too little in time the other sources get more weight.
    """
    affordable = budget.tokens(clock.left)
    limit = math.inf if text.samples is not None and is_share(text.samples) else affordable  # shares count all samples
    read, wanted = shared_out(text, tokenizer, seed, tokens=limit)
    examples = {name: [example for part in parts for example in part] for name, parts in read.items()}
    whole = sum(wanted.values())
    tokens = sum(amount * _mean_length(examples.get(name, ()), text.length) for name, amount in wanted.items())
    least = max(budget.least_samples, len(text.sources))
    samples = min(whole, max(least, int(whole * affordable / tokens)))
    if not text.own:
        return replace(text, samples=samples)
    windows = shares(text.sources, {name: len(some) for name, some in examples.items()}, samples)[OWN]
    written = replace(write(text, windows, clock.next(WRITTEN)), samples=samples)
    (file,) = (source for source in written.sources if is_own(source.name))
    count = max(1, len(own_windows(file.name, text.length - len(bos_ids(tokenizer)), windows)))
    others = [source for source in written.sources if source != file]
    if count >= windows or not others:
        return replace(written, samples=samples if others else max(least, count))
    weight = float(f"{count * sum(source.weight for source in others) / (samples - count):.3g}")
    return replace(written, source={source.name: source.weight for source in others} | {file.name: weight})


def _mean_length(examples: Sequence[Example], most: int) -> float:
    """Return the mean tokens of a sample; the most for those that are not read yet."""
    return sum(len(example.ids) for example in examples) / len(examples) if examples else most
