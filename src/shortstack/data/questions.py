"""Multiple-choice questions from files, and as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.data.sources import read_lines
from shortstack.data.tokens import bos_ids, encode
from shortstack.errors import DataError

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
class Request:
    """One choice after its context: token ids, and where the choice begins."""

    ids: tuple[int, ...]
    start: int

    @property
    def context(self) -> tuple[int, ...]:
        return self.ids[: self.start]

    @property
    def ending(self) -> tuple[int, ...]:
        """The tokens of the choice."""
        return self.ids[self.start :]


@dataclass(frozen=True)
class TokenizedQuestion:
    """A question as tokens: its choices, and the place of the right one."""

    choices: tuple[Request, ...]
    answer: int


def read_questions(path: str | Path) -> list[Question]:
    """Read the questions of a .jsonl file, each line as in LAYOUT."""
    questions = []
    for where, value in read_lines(Path(path)):
        if not _is_question(value):
            fix = "correct or delete that line; `answer` counts from 0"
            raise DataError(json.dumps(value)[:80], expected=f"a question like {LAYOUT}", fix=fix, where=where)
        questions.append(Question(value["context"], tuple(value["choices"]), value["answer"]))
    return questions


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


def tokenize_questions(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedQuestion]:
    """Tokenise each question with each of its choices."""
    return [
        TokenizedQuestion(
            tuple(request(tokenizer, question.context, choice) for choice in question.choices), question.answer
        )
        for question in questions
    ]


def request(tokenizer: PreTrainedTokenizerBase, context: str, choice: str) -> Request:
    """Join context and choice into one text, parted by how many tokens the context alone has; spaces at its end go over."""
    stripped = context.rstrip()
    choice = context[len(stripped) :] + choice
    bos = bos_ids(tokenizer)
    before, ids = encode(tokenizer, stripped), encode(tokenizer, stripped + choice)
    start = len(bos) + len(before)
    if not start or len(before) >= len(ids):
        raise DataError(
            f"{start} and {len(ids) - len(before)}",
            expected="a token of context before the choice, and a token of the choice after it",
            fix="write what comes before the choices, and choices that are more than spaces",
            where=f"the question {context[-40:]!r} with the choice {choice[:40]!r}",
        )
    return Request((*bos, *ids), start)
