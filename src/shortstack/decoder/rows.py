"""Rows of tokens that are written together: some leave when they have ended, others enter, and the cache follows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shortstack.decoder.batching import padded

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

ROUNDING = 1e-4  # of a key in fp32, as a share of it; that of another place differs by more
Write = Callable[[Tensor, Tensor, int, Any], tuple[Tensor, Any]]  # ids, mask, tokens to write, cache -> ids, cache


@dataclass
class Rows:
    """Rows that go on from the same place, padded on the left.

    numbers: which rows they are. ids, mask: [rows, tokens]. cache: keys and values of all tokens but the last; None where
    nothing has been read.
    """

    numbers: list[int]
    ids: Tensor
    mask: Tensor
    cache: DynamicCache | None = None

    @classmethod
    def of(cls, numbers: Sequence[int], prompts: Sequence[Sequence[int]], model: PreTrainedModel) -> Rows:
        """A row for each of these prompts; nothing has been read or written yet."""
        ids, mask = side_by_side([prompts[number] for number in numbers], model)
        return cls(list(numbers), ids, mask)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.ids.shape[1]

    def go_on(self, tokens: int, write: Write) -> dict[int, list[int]]:
        """Write up to so many tokens after each row; what was written, padding after an end token included."""
        before = self.ids.shape[1]
        self.ids, self.cache = write(self.ids, self.mask, tokens, self.cache)
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
        _each(self.cache, lambda states: states[kept.to(states.device)][..., blank:, :])

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


def can_leave(model: PreTrainedModel, prompt: Sequence[int], write: Write) -> bool:
    """Whether keys and values of each token are all that the model keeps of it, so that rows can leave and enter.

    Windows that slide and states that are summed up along a row are not, nor are keys that know in which column of the batch
    their token stood, padding counted: such models write a batch to its end. Tried on a prompt (greedily): read in two parts
    behind padding, its last token must get the keys that it has otherwise.
    """
    ids, mask = side_by_side([prompt if len(prompt) > 1 else [*prompt, *prompt]], model)
    tokens = ids.shape[1]
    _, whole = write(ids, mask, 2, None)
    if not _plain(whole) or whole.get_seq_length() not in (tokens, tokens + 1):  # the first may be an end token
        return False
    ids, mask = (torch.nn.functional.pad(each, (1, 0)) for each in (ids, mask))
    parts = None
    for end in (tokens, tokens + 1):
        _, parts = write(ids[:, :end], mask[:, :end], 1, parts)
    return all(_alike(a.keys[:, :, tokens - 1], b.keys[:, :, tokens]) for a, b in _owning(whole, parts))


def _alike(keys: Tensor, other: Tensor) -> bool:
    """Whether keys differ by no more than rounding."""
    rounding = max(ROUNDING, 4 * torch.finfo(keys.dtype).eps)
    return bool((keys.float() - other.float()).norm() <= rounding * keys.float().norm())


def _plain(cache: Any) -> bool:
    """Whether a cache holds keys and values of all tokens, layer by layer, and nothing else."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def _each(cache: DynamicCache | None, change: Callable[[Tensor], Tensor]) -> None:
    """Change the keys and values [rows, heads, tokens, size] of each layer."""
    for layer, _ in _owning(cache, cache):
        layer.keys, layer.values = change(layer.keys), change(layer.values)


def _owning(cache: DynamicCache | None, other: DynamicCache | None) -> list[tuple[Any, Any]]:
    """The layers of both, side by side, that have keys of their own: some take those of another layer."""
    if cache is None or other is None:
        return []
    return [pair for pair in zip(cache.layers, other.layers, strict=True) if pair[0].is_initialized]
