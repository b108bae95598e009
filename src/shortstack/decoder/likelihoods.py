"""How likely a model finds what follows a context: the head only where a token is scored, a shared context only once.

    log p(continuation | context) = sum over its tokens of log softmax(logits of the token before)

The choices of a question often share their context. It passes the layers once, its keys and values are copied to every
choice, and only the choices' own tokens follow. A choice of one token needs nothing but the context.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shortstack.decoder.batching import by_length, padded
from shortstack.decoder.decoder import UNPRUNED, Decoder
from shortstack.decoder.losses import check_states, chunks, greedy_tokens, pieces
from shortstack.machine.numbers import in_float64
from shortstack.machine.progress import Progress, paced, silent

if TYPE_CHECKING:
    from transformers import Cache


CACHES = ("cache", "past_key_values")  # a model's input that takes a cache, as newer and older transformers call it
TOLERANCE = 0.05  # of a state's length: bf16 differs by a hundredth, a wrong position by half
LEAST = 4  # tokens of a context that are worth a cache: a page of text after BOS shares nothing of note
EXPANDABLE = {"full_attention", "sliding_attention"}  # layers whose cache is keys and values, a row for each sequence


@dataclass(frozen=True)
class Request:
    """One choice after its context: token ids, and where the choice begins."""

    ids: tuple[int, ...]
    start: int

    @property
    def context(self) -> tuple[int, ...]:
        return self.ids[: self.start]

    @property
    def ending(self) -> tuple[int, ...]:
        return self.ids[self.start :]


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood in nats of what a request ends with, and whether each of its tokens is the likeliest one."""

    value: float
    greedy: bool


@torch.no_grad()
def likelihoods(
    decoder: Decoder, requests: Sequence[Request], *, batch: int | None = None, progress: Progress = silent
) -> list[Likelihood]:
    """Compute each request's likelihood; batch: so many sequences in a forward, None for as many as BATCH_TOKENS allows.

    Where weights are streamed all requests pass layer after layer, and no context is shared.
    """
    scored: dict[int, Likelihood] = {}
    progress = paced(progress, sum(len(request.ids) for request in requests))
    for places, states in _passed(decoder, requests, batch=batch, sharing=True):
        scored.update(zip(places, _likelihoods(decoder, [requests[place] for place in places], states), strict=True))
        progress("answering", len(scored), len(requests))
    return [scored[place] for place in range(len(requests))]


@torch.no_grad()
def greedy_endings(
    decoder: Decoder, requests: Sequence[Request], *, stage: str = "answering", progress: Progress = silent
) -> list[list[int]]:
    """Return the likeliest token at each place of each request's ending, the tokens before it given (teacher forcing).

    A greedy answer is an ending exactly where these are its tokens, so that one forward pass tells and nothing is written.
    """
    endings: dict[int, list[int]] = {}
    progress = paced(progress, sum(len(request.ids) for request in requests))
    for places, states in _passed(decoder, requests):
        tokens = greedy_tokens(decoder, states).cpu()
        for place, ending in zip(places, tokens.split([len(requests[place].ending) for place in places]), strict=True):
            endings[place] = ending.tolist()
        progress(stage, len(endings), len(requests))
    return [endings[place] for place in range(len(requests))]


def _passed(
    decoder: Decoder, requests: Sequence[Request], *, batch: int | None = None, sharing: bool = False
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield requests' places and the states that predict their endings. sharing: a context of several passes once."""
    if decoder.weights:
        yield from _walked(decoder, requests, batch=batch)
        return
    alone, shared = _parted(requests) if sharing and shares_contexts(decoder) else (range(len(requests)), [])
    for group in by_length([len(requests[place].ids) for place in alone], batch=batch):
        places = [alone[index] for index in group]
        yield places, _whole(decoder, [requests[place] for place in places])
    # By the longest whole, not by the context: what is padded most are the continuations.
    for group in by_length([max(len(requests[place].ids) for place in places) for places in shared], batch=batch):
        yield from _after_contexts(decoder, requests, [shared[index] for index in group], batch)


def _walked(
    decoder: Decoder, requests: Sequence[Request], *, batch: int | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield requests' places, and the states that predict their endings; many batches pass a layer together."""
    batches = by_length([len(request.ids) for request in requests], batch=batch)
    largest = max((len(places) * len(requests[places[-1]].ids) for places in batches), default=1)
    for turn in decoder.memory_batches(batches, tokens=largest, streams=1):
        walks = [decoder.enter(_rows(decoder, [requests[place] for place in places]), [UNPRUNED]) for places in turn]
        for _ in decoder.through(walks, range(len(decoder.layers))):
            pass
        for places, walk in zip(turn, walks, strict=True):
            here = [requests[place] for place in places]
            yield places, _predicting(here, walk.hidden[UNPRUNED])


def _parted(requests: Sequence[Request]) -> tuple[list[int], list[list[int]]]:
    """Part the places of requests that pass alone from those of the others, grouped by context."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(request.context, []).append(place)
    shared = [group for context, group in groups.items() if len(group) > 1 and len(context) >= LEAST]
    return sorted(set(range(len(requests))) - {place for group in shared for place in group}), shared


def shares_contexts(decoder: Decoder) -> bool:
    """Say whether what a model keeps of a context can be copied to several continuations.

    It must take a cache, masks and positions; all its layers must be attention (a recurrent state, a convolution or a
    compressed cache has no row of keys and values for each token); they must hand on hidden states alone; and on a
    few tokens, behind a padded context, it must give what it gives without a cache: some models number positions their way.
    """
    config = decoder.model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    takes = _inputs(decoder)
    sharing = takes >= {"attention_mask", "position_ids"} and bool(takes & set(CACHES))
    return sharing and kinds <= EXPANDABLE and decoder.bare and _agrees(decoder)


def _agrees(decoder: Decoder) -> bool:
    """Say whether states behind contexts of 8 and 12 tokens are those of whole sequences, up to TOLERANCE."""
    first = decoder.vocabulary // 2  # no special tokens there
    probe = [Request(tuple(range(first, first + length + 2)), length) for length in (8, 12)]
    ((places, states),) = _after_contexts(decoder, probe, [[0], [1]], None)
    expected = _whole(decoder, [probe[place] for place in places])
    return float((states - expected).norm() / expected.norm()) < TOLERANCE


def _inputs(decoder: Decoder) -> set[str]:
    return set(inspect.signature(decoder.model.base_model.forward).parameters)


def _rows(decoder: Decoder, requests: Sequence[Request]) -> Tensor:
    """Pad the requests to token ids [requests, longest], without each one's last token, which predicts nothing."""
    return padded([request.ids[:-1] for request in requests], decoder.device)


def _whole(decoder: Decoder, requests: Sequence[Request]) -> Tensor:
    """Pass requests through the layers whole, and return what _predicting() takes of them."""
    return _predicting(requests, decoder.finish(_rows(decoder, requests)))


def _predicting(requests: Sequence[Request], hidden: Tensor) -> Tensor:
    """Take the hidden states [requests, length, width] that predict a token of an ending: [tokens, width]."""
    check_states(hidden, len(requests), max(len(request.ids) for request in requests) - 1)
    return torch.cat(
        [row[request.start - 1 : len(request.ids) - 1] for row, request in zip(hidden, requests, strict=True)]
    )


def _after_contexts(
    decoder: Decoder, requests: Sequence[Request], groups: Sequence[Sequence[int]], batch: int | None
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield requests' places, and the states that predict their endings, for groups that share a context."""
    from transformers import DynamicCache

    contexts = [requests[group[0]].context for group in groups]
    ids = padded(contexts, decoder.device, left=True)
    mask = padded([[1] * len(context) for context in contexts], decoder.device, left=True)
    lengths, cache = mask.sum(-1), DynamicCache(config=decoder.model.config)
    kept_in = next(name for name in CACHES if name in _inputs(decoder))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    last = decoder.finish(ids, attention_mask=mask, position_ids=positions, use_cache=True, **{kept_in: cache})[:, -1]
    members = [(row, place) for row, group in enumerate(groups) for place in group]
    single = [(row, place) for row, place in members if len(requests[place].ending) == 1]
    if single:  # the context predicts its one token
        yield [place for _, place in single], last[[row for row, _ in single]]
    longer = [(row, place) for row, place in members if len(requests[place].ending) > 1]
    for some in by_length([ids.shape[1] + len(requests[place].ending) - 1 for _, place in longer], batch=batch):
        places = [longer[index][1] for index in some]
        rows = torch.tensor([longer[index][0] for index in some], device=decoder.device)
        tails = [requests[place].ending[:-1] for place in places]
        following = padded(tails, decoder.device)
        steps = padded([range(len(tail)) for tail in tails], decoder.device)  # padding has a position, too
        hidden = decoder.finish(
            following,
            attention_mask=torch.cat([mask[rows], torch.ones_like(following)], dim=1),
            position_ids=lengths[rows, None] + steps,
            use_cache=True,
            **{kept_in: _copied(cache, rows)},
        )
        parts = zip(rows, hidden, tails, strict=True)
        yield places, torch.cat([state for row, part, tail in parts for state in (last[row, None], part[: len(tail)])])


def _copied(cache: Cache, rows: Tensor) -> Cache:
    chosen = copy(cache)
    chosen.layers = [copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def _likelihoods(decoder: Decoder, requests: Sequence[Request], states: Tensor) -> list[Likelihood]:
    """Compute each request's likelihood from the states [tokens, width] that predict its ending, request after request."""
    endings = [request.ending for request in requests]
    targets = torch.tensor([token for ending in endings for token in ending], device=states.device)
    values, likeliest = [], []
    for here in chunks(decoder, states):
        for log_p, wanted in pieces(decoder.token_logits(states[here]), targets[here]):
            values.append(log_p.gather(-1, wanted[:, None])[:, 0])
            likeliest.append(log_p.argmax(-1) == wanted)
    sizes = [len(ending) for ending in endings]
    sums = in_float64(torch.cat(values)).cpu().split(sizes)
    hits = torch.cat(likeliest).cpu().split(sizes)
    return [Likelihood(float(value.sum()), bool(hit.all())) for value, hit in zip(sums, hits, strict=True)]
