"""A chat template as the pieces of text around each turn, found by rendering it: what other runtimes can be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from shortstack.errors import InputError

Message = Mapping[str, str]
Render = Callable[[Sequence[Message], bool], str]
# Words that no template has, to find contents by.
SYSTEM, USER, ANSWER, AGAIN = (
    {"role": role, "content": f"shortstack{word}"}
    for role, word in (("system", "Eins"), ("user", "Zwei"), ("assistant", "Drei"), ("user", "Vier"))
)


@dataclass(frozen=True)
class Turn:
    """What stands before the content of a turn, and behind it."""

    before: str
    behind: str

    def around(self, content: str) -> str:
        return f"{self.before}{content}{self.behind}"


@dataclass(frozen=True)
class Turns:
    """A chat template whose turns do not depend on each other.

    begin: before all. answer: before what the model writes. usual: what stands in a system turn where none is given;
    system: None where the template has no such turn.
    """

    begin: str
    system: Turn | None
    user: Turn
    assistant: Turn
    answer: str
    usual: str | None = None

    def rendered(self, messages: Sequence[Message]) -> str:
        """A conversation that the model is to go on with."""
        turns = {"system": self.system, "user": self.user, "assistant": self.assistant}
        told = list(messages)
        if self.usual is not None and told[0]["role"] != "system":
            told.insert(0, {"role": "system", "content": self.usual})
        pieces = []
        for message in told:
            turn = turns[message["role"]]
            assert turn  # noqa: S101  a system turn is only asked for where there is one
            pieces.append(turn.around(message["content"]))
        return "".join([self.begin, *pieces, self.answer])

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Turns:
        """Raises:
        InputError: the tokenizer has no chat template, or one whose turns depend on each other.
        """
        if not tokenizer.chat_template:
            raise _refused("none")

        def render(messages: Sequence[Message], answer: bool) -> str:
            asked = [dict(message) for message in messages]
            return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=answer))

        try:
            found = _found(render)
        except ValueError as error:
            raise _refused("one whose turns depend on each other") from error
        for conversation in _conversations(found.system is not None):
            if found.rendered(conversation) != render(conversation, True):
                raise _refused("one whose turns depend on each other")
        return found


def _found(render: Render) -> Turns:
    """The pieces, from what differs between conversations.

    Raises:
        ValueError: a conversation is no continuation of a shorter one.
    """
    one = render([USER], False)
    two = render([USER, ANSWER], False)
    three = render([USER, ANSWER, AGAIN], False)
    assistant, user = _turn(_behind(one, two), ANSWER), _turn(_behind(two, three), AGAIN)
    start = _before(one, user.around(USER["content"]))
    answer = _behind(one, render([USER], True))
    begin, system, usual = _system(render, start, user)
    return Turns(begin, system, user, assistant, answer, usual)


def _system(render: Render, start: str, user: Turn) -> tuple[str, Turn | None, str | None]:
    """What begins a conversation, the system turn, and what stands in it by itself.

    start: what comes before the first turn of a user where no system turn is given.
    """
    from jinja2 import TemplateError

    try:
        told = _before(render([SYSTEM, USER], False), user.around(USER["content"]))
    except TemplateError:  # the template raises where there is a system turn
        return start, None, None
    turn = _turn(told, SYSTEM)
    if (
        start.startswith(turn.before)
        and start.endswith(turn.behind)
        and len(start) >= len(turn.before) + len(turn.behind)
    ):
        return "", turn, start[len(turn.before) : len(start) - len(turn.behind)]
    return start, Turn(_behind(start, turn.before), turn.behind), None


def _turn(text: str, message: Message) -> Turn:
    before, found, behind = text.partition(message["content"])
    if not found:
        raise ValueError(text)
    return Turn(before, behind)


def _behind(start: str, text: str) -> str:
    if not text.startswith(start):
        raise ValueError(text)
    return text[len(start) :]


def _before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError(text)
    return text[: len(text) - len(end)]


def _conversations(system: bool) -> list[list[Message]]:
    """What a template is tried on."""
    user = {"role": "user", "content": 'Two words\nand a line: {{ x }} "quoted"'}
    answer = {"role": "assistant", "content": "Yes, of course"}
    told = {"role": "system", "content": "Be short"}
    without: list[list[Message]] = [[user], [user, answer, user], [user, answer, user, answer, AGAIN]]
    return [*without, *([told, *each] for each in without if system)]


def _refused(found: str) -> InputError:
    return InputError(
        "the chat template",
        expected="turns that do not depend on each other, which a Modelfile can say",
        found=found,
        fix="write the Modelfile's TEMPLATE by hand",
    )
