"""Likelihoods of answers to multiple-choice questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shortstack.data.questions import Request, TokenizedQuestion
from shortstack.decoder.decoder import Decoder, Front, Route, by_length
from shortstack.decoder.losses import target_losses
from shortstack.machine.numbers import in_float64
from shortstack.machine.progress import Progress, silent


@dataclass(frozen=True)
class Accuracy:
    """The share of questions answered rightly, and its standard error sqrt(p (1 - p) / (n - 1))."""

    value: float
    stderr: float
    correct: tuple[bool, ...]

    @classmethod
    def of(cls, correct: Sequence[bool]) -> Accuracy:
        share, count = sum(correct) / len(correct), len(correct)
        return cls(share, math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else math.nan, tuple(correct))


def answers(
    decoder: Decoder, questions: Sequence[TokenizedQuestion], routes: Sequence[Route], *, progress: Progress = silent
) -> dict[Route, Accuracy]:
    """How many questions the model answers rightly without the layers of each route, all from one walk."""
    found = likelihoods(decoder, [each for question in questions for each in question.choices], routes, progress)
    ends = torch.tensor([len(question.choices) for question in questions]).cumsum(0)[:-1]
    return {
        route: Accuracy.of(
            [
                int(choices.argmax()) == question.answer
                for choices, question in zip(values.tensor_split(ends), questions, strict=True)
            ]
        )
        for route, values in found.items()
    }


@torch.no_grad()
def likelihoods(
    decoder: Decoder, requests: Sequence[Request], routes: Sequence[Route], progress: Progress = silent
) -> dict[Route, Tensor]:
    """The log-likelihood in nats of what each request ends with, for each route: [requests], fp64."""
    batches = by_length([len(request.ids) for request in requests])
    found = {route: torch.zeros(len(requests), dtype=torch.float64) for route in routes}
    done = 0
    largest = max(len(batch) * len(requests[batch[-1]].ids) for batch in batches)
    for turn in decoder.turns(batches, tokens=largest, streams=len(routes)):
        rows = ([requests[place].ids for place in batch] for batch in turn)
        fronts = [decoder.enter(padded(some, decoder.device), routes) for some in rows]
        for _ in decoder.through(fronts, range(len(decoder.layers))):
            pass
        for batch, front in zip(turn, fronts, strict=True):
            for route, hidden in front.arrived.items():
                found[route][batch] = _sums(decoder, front, hidden, [requests[place] for place in batch])
            done += len(batch)
            progress("answering", done, len(requests))
    return found


def padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False) -> Tensor:
    """Token ids [rows, longest], padded with 0: on the right, where no token sees what comes after it, or on the left."""
    longest = max(map(len, rows))
    blanks = [[0] * (longest - len(row)) for row in rows]
    filled = [[*blank, *row] if left else [*row, *blank] for blank, row in zip(blanks, rows, strict=True)]
    return torch.tensor(filled, device=device)


def _sums(decoder: Decoder, front: Front, hidden: Tensor, requests: Sequence[Request]) -> Tensor:
    """Log-likelihoods [requests]: only the states that predict a token of a choice pass the head."""
    rows = [row for row, request in enumerate(requests) for _ in request.ids[request.start :]]
    places = [place for request in requests for place in range(request.start, len(request.ids))]
    at = torch.tensor(rows, device=hidden.device), torch.tensor(places, device=hidden.device)
    losses = in_float64(target_losses(decoder, hidden[at[0], at[1] - 1], front.ids[at])).cpu()
    return torch.zeros(len(requests), dtype=torch.float64).index_add_(0, torch.tensor(rows), -losses)
