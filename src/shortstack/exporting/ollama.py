"""modelfile(): what Ollama is told of a model: its file, its chat template, and where an answer ends."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from shortstack.checkpoint import Checkpoint, Model
from shortstack.errors import InputError
from shortstack.exporting.chat_template import Turns

QUOTES = '"""'


def modelfile(checkpoint: Model, gguf: str | Path) -> str:
    """The Modelfile of a checkpoint that lies in a .gguf file beside it.

    The chat template becomes one of Go's, which Ollama fills in: tried first on conversations, it gives what the tokenizer's
    own gives. A model without chat template completes what it is told.

    Raises:
        InputError: the turns of the chat template depend on each other.
    """
    checkpoint = Checkpoint.of(checkpoint)
    tokenizer = checkpoint.tokenizer()
    lines = [f"FROM ./{Path(gguf).name}"]
    if not tokenizer.chat_template:
        return "\n".join([*lines, 'TEMPLATE """{{ .Prompt }}"""', ""])
    turns = Turns.of(tokenizer)
    lines.append(f"TEMPLATE {_quoted(go_template(turns, begin=_begin(tokenizer, turns)))}")
    if turns.usual is not None:
        lines.append(f"SYSTEM {_quoted(turns.usual)}")
    lines += [f"PARAMETER stop {_quoted(stop, marks=chr(34))}" for stop in _stops(tokenizer, turns)]
    return "\n".join([*lines, ""])


def go_template(turns: Turns, *, begin: str) -> str:
    """One line, since a template of Go keeps every blank.

    >>> from shortstack.exporting.chat_template import Turn
    >>> go_template(Turns("", None, Turn("U:", ";"), Turn("A:", ";"), "A:"), begin="").partition("{{ else ")[0]
    '{{ range .Messages }}{{ if eq .Role "user" }}U:{{ .Content }};'
    """
    named = {"system": turns.system, "user": turns.user, "assistant": turns.assistant}
    cases = [
        f'if eq .Role "{role}" }}}}{_literal(turn.before)}{{{{ .Content }}}}{_literal(turn.behind)}'
        for role, turn in named.items()
        if turn
    ]
    body = "{{ " + "{{ else ".join(cases) + "{{ end }}"
    return f"{_literal(begin)}{{{{ range .Messages }}}}{body}{{{{ end }}}}{_literal(turns.answer)}"


def _literal(text: str) -> str:
    """Text as a template has it; its own braces are no action."""
    return text.replace("{{", '{{ "{{" }}')


def _begin(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> str:
    """What comes before all, without the token that llama.cpp puts there by itself."""
    bos = tokenizer.bos_token
    first = tokenizer("").input_ids[:1]
    adds = bos is not None and first == [tokenizer.bos_token_id]
    return turns.begin.removeprefix(bos) if adds and bos else turns.begin


def _stops(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> list[str]:
    """What ends an answer: the end of a turn, and the end of a text."""
    ends = [turns.assistant.behind.strip(), tokenizer.eos_token]
    return list(dict.fromkeys(end for end in ends if end))


def _quoted(text: str, *, marks: str = QUOTES) -> str:
    """A text of a Modelfile.

    Raises:
        InputError: it holds the marks that end it.
    """
    if marks in text:
        expected, fix = f"text without {marks}", "write the Modelfile by hand"
        raise InputError("the chat template", expected=expected, found=f"{marks} in it", fix=fix)
    return f"{marks}{text}{marks}"
