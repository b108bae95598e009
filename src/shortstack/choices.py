"""Multiple choice by likelihood: the choice that the model finds likeliest after the context is its answer.

One walk answers for the model and for any number of shorter forms of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shortstack.errors import DataError
from shortstack.losses import target_losses
from shortstack.metrics import in_float64
from shortstack.progress import Progress, silent
from shortstack.texts import read_lines
from shortstack.tokens import bos_ids, encode
from shortstack.walk import Decoder, Front, Route, by_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYOUT = '{"context": "The sky is", "choices": [" blue", " loud"], "answer": 0}'


@dataclass(frozen=True)
class Question:
    """A context, what may follow it (with the space that parts them), and the place of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


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


@dataclass(frozen=True)
class Request:
    """One choice after its context: token ids, and where the choice begins."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Asked:
    """A question as tokens: its choices, and the place of the right one."""

    choices: tuple[Request, ...]
    answer: int


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a .jsonl file, each line as in LAYOUT.

    Raises:
        DataError: a line is not a question; its number is named.
    """
    return [_question(value, where) for where, value in read_lines(Path(path))]


def _question(value: Any, where: str) -> Question:
    if not _is_question(value):
        raise DataError(
            where,
            expected=f"a question like {LAYOUT}",
            found=json.dumps(value)[:80],
            fix="correct or delete that line; `answer` counts from 0",
        )
    return Question(value["context"], tuple(value["choices"]), value["answer"])


def _is_question(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("context"), str):
        return False
    choices, answer = value.get("choices"), value.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or type(answer) is not int:
        return False
    return all(isinstance(choice, str) and choice for choice in choices) and 0 <= answer < len(choices)


def questions_sha256(questions: Sequence[Question]) -> str:
    """Digest of the questions, their order included."""
    return hashlib.sha256(json.dumps([asdict(question) for question in questions]).encode()).hexdigest()


def asked(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> list[Asked]:
    """The questions as tokens.

    Raises:
        DataError: a choice has no token of its own, or none before it.
    """
    return [
        Asked(tuple(request(tokenizer, question.context, choice) for choice in question.choices), question.answer)
        for question in questions
    ]


def answers(
    decoder: Decoder, questions: Sequence[Asked], routes: Sequence[Route], *, progress: Progress = silent
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


def request(tokenizer: PreTrainedTokenizerBase, context: str, choice: str) -> Request:
    """Context and choice as one text, parted by how many tokens the context alone has; spaces at its end go over."""
    stripped = context.rstrip()
    choice = context[len(stripped) :] + choice
    bos = bos_ids(tokenizer)
    before, ids = encode(tokenizer, stripped), encode(tokenizer, stripped + choice)
    start = len(bos) + len(before)
    if not start or len(before) >= len(ids):
        raise DataError(
            f"the question {context[-40:]!r} with the choice {choice[:40]!r}",
            expected="a token of context before the choice, and a token of the choice after it",
            found=f"{start} and {len(ids) - len(before)}",
            fix="write what comes before the choices, and choices that are more than spaces",
        )
    return Request((*bos, *ids), start)


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
