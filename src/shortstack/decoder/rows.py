"""Rows of tokens that are written together: some leave when they have ended, others enter, and the cache follows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shortstack.decoder.batching import padded

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

ROUNDING = 1e-4  # of a key in fp32, as a share of it; that of another place differs by more
Write = Callable[[Tensor, Tensor, int, "DynamicCache | None"], Tensor]  # ids, mask, tokens to write, cache -> ids


@dataclass
class Rows:
    """Rows that go on from the same place, padded on the left.

    numbers: which rows they are. ids, mask: [rows, tokens]. cache: keys and values of all tokens but the last, once one is written.
    """

    numbers: list[int]
    ids: Tensor
    mask: Tensor
    cache: DynamicCache

    @classmethod
    def of(cls, numbers: Sequence[int], prompts: Sequence[Sequence[int]], model: PreTrainedModel) -> Rows:
        """A row for each of these prompts; nothing has been read or written yet."""
        ids, mask = side_by_side([prompts[number] for number in numbers], model)
        return cls(list(numbers), ids, mask, empty_cache(model))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.ids.shape[1]

    def go_on(self, tokens: int, write: Write) -> dict[int, list[int]]:
        """Write up to so many tokens after each row; what was written, padding after an end token included."""
        before = self.ids.shape[1]
        self.ids = write(self.ids, self.mask, tokens, self.cache)
        self.mask = torch.nn.functional.pad(self.mask, (0, self.ids.shape[1] - before), value=1)
        return dict(zip(self.numbers, self.ids[:, before:].tolist(), strict=True))

    def leave(self, ended: Collection[int]) -> None:
        """Those rows are gone, and with them the columns that are padding in all that stay."""
        if not ended:
            return
        stay = [place for place, number in enumerate(self.numbers) if number not in ended]
        kept = torch.tensor(stay, device=self.ids.device, dtype=torch.long)
        self.numbers = [self.numbers[place] for place in stay]
        self.ids, self.mask = self.ids[kept], self.mask[kept]
        blank = int(self.mask.argmax(1).min()) if stay else 0
        self.ids, self.mask = self.ids[:, blank:], self.mask[:, blank:]
        _each(self.cache, lambda states: states[kept][..., blank:, :])

    def joined(self, others: Rows) -> Rows:
        """These and others together; the shorter are padded on the left until all are equally long."""
        if not self or not others:
            return self or others
        for rows in (self, others):
            rows._pad(max(self.longest, others.longest) - rows.longest)
        for own, other in _owning(self.cache, others.cache):
            own.keys, own.values = torch.cat([own.keys, other.keys]), torch.cat([own.values, other.values])
        ids, mask = torch.cat([self.ids, others.ids]), torch.cat([self.mask, others.mask])
        return Rows(self.numbers + others.numbers, ids, mask, self.cache)

    def _pad(self, columns: int) -> None:
        """Hidden columns on the left, with zeros for keys and values."""
        if columns == 0:
            return
        self.ids, self.mask = (torch.nn.functional.pad(each, (columns, 0)) for each in (self.ids, self.mask))
        _each(self.cache, lambda states: torch.nn.functional.pad(states, (0, 0, columns, 0)))


def side_by_side(prompts: Sequence[Sequence[int]], model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """ids and mask [rows, tokens], padded on the left so that all go on from the same place."""
    mask = [[1] * len(prompt) for prompt in prompts]
    return padded(prompts, model.device, left=True), padded(mask, model.device, left=True)


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """A cache as generate() would make it."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config(decoder=True))


def cache_name() -> str:
    """What generate() calls the cache that it is given: it was renamed."""
    from transformers.generation import GenerateDecoderOnlyOutput

    return "cache" if hasattr(GenerateDecoderOnlyOutput, "cache") else "past_key_values"


def can_leave(model: PreTrainedModel, prompt: Sequence[int], write: Write) -> bool:
    """Whether keys and values of each token are all that the model keeps of it, so that rows can leave and enter.

    Windows that slide and states that are summed up along a row are not, nor are keys that know in which column of the batch
    their token stood, padding counted: such models write a batch to its end. Tried on a prompt (greedily): read in two parts
    behind padding, its last token must get the keys that it has otherwise.
    """
    taken = inspect.signature(model.forward).parameters
    if not {cache_name(), "past_key_values"} & set(taken) or not _plain(empty_cache(model)):
        return False
    ids, mask = side_by_side([prompt if len(prompt) > 1 else [*prompt, *prompt]], model)
    write(ids, mask, 1, whole := empty_cache(model))
    if not _plain(whole) or whole.get_seq_length() != ids.shape[1]:
        return False
    ids, mask = (torch.nn.functional.pad(each, (1, 0)) for each in (ids, mask))
    parts = empty_cache(model)
    for end in (ids.shape[1] - 1, ids.shape[1]):
        write(ids[:, :end], mask[:, :end], 1, parts)
    return _alike(whole, parts)


def _alike(cache: DynamicCache, other: DynamicCache) -> bool:
    """Whether the last token of both has the same keys in each layer."""
    pairs = [(a.keys[:, :, -1].float(), b.keys[:, :, -1].float(), a.keys.dtype) for a, b in _owning(cache, other)]
    return all((a - b).norm() <= max(ROUNDING, 4 * torch.finfo(dtype).eps) * a.norm() for a, b, dtype in pairs)


def _plain(cache: DynamicCache) -> bool:
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _each(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> None:
    """Change the keys and values [rows, heads, tokens, size] of each layer."""
    for layer, _ in _owning(cache, cache):
        layer.keys, layer.values = change(layer.keys), change(layer.values)


def _owning(cache: DynamicCache, other: DynamicCache) -> list[tuple[Any, Any]]:
    """The layers of both, side by side, that have keys of their own: some take those of another layer."""
    return [pair for pair in zip(cache.layers, other.layers, strict=True) if pair[0].is_initialized]
