"""Reads the command line by cyclopts. Imported when a verb is asked for."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import takewhile
from typing import TYPE_CHECKING, Any, get_args, get_origin

import pydantic
from attrs import evolve
from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    Token,
    UnusedCliTokensError,
    convert,
)
from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, NameRenderer

from shortstack.cli.verbs import HELP, VERBS
from shortstack.errors import InputError, one_line
from shortstack.machine.options import input_error

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel


def call(words: Sequence[str]) -> None:
    try:
        check_known(words)
        app()(words)
    except CycloptsError as error:
        raise _refused(error) from None


@functools.cache
def app() -> App:
    read = Parameter(converter=_read, negative_iterable=(), allow_repeating=True)
    made = App(
        name="shortstack",
        version=lambda: f"shortstack {version('shortstack')}",
        help_flags=HELP,
        help_format="plaintext",
        help_formatter=_Help(column_specs=COLUMNS),
        group_parameters=Group("Options", sort_key=0),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for name in VERBS:
        attribute = name.replace("-", "_")
        made.command(f"shortstack.cli.{attribute}:{attribute}", name=name, default_parameter=read)
    made.register_install_completion_command()
    return made


def _read(hint: Any, tokens: Sequence[Token]) -> Any:
    """Return the value that was typed; numbers as text, which classes of options read, and all sources of a text."""
    kinds = {hint, *get_args(hint)}
    if any(get_origin(kind) is Iterable for kind in kinds):
        return [token.value for token in tokens]
    return tokens[0].value if {int, float} & kinds else convert(hint, tokens)


NAMES = NameRenderer(max_width=31)  # characters: no name is longer
COLUMNS = (ColumnSpec(renderer=NAMES, style="cyclopts.name"), ColumnSpec(renderer=DescriptionRenderer()))


class _Help(DefaultFormatter):
    """The help of cyclopts, where a flag that is off by default shows neither its default nor its negative form."""

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        entries = [
            evolve(entry, default=None, negative_names=()) if entry.default == "False" else entry
            for entry in panel.entries
        ]
        super().__call__(console, options, panel.copy(entries=entries))


def check_known(words: Sequence[str]) -> None:
    """Refuse all unknown options at once, each with the nearest one; that comes before what is missing."""
    if not words or words[0] not in VERBS:
        return
    known = [name for argument in app()[words[0]].assemble_argument_collection() for name in argument.names]
    typed = [word.partition("=")[0] for word in takewhile(lambda word: word != "--", words[1:])]
    options = [word for word in typed if word.startswith("--") and word not in HELP]
    unknown = [word for word in options if word.replace("_", "-") not in known]
    if unknown:
        hints = [f"{word} (did you mean {near}?)" if (near := nearest(word, known)) else word for word in unknown]
        raise InputError(f"no such option: {', '.join(hints)}; `shortstack {words[0]} --help` lists them")


def _refused(error: CycloptsError) -> InputError:
    """Return the error to show for one of cyclopts."""
    if isinstance(error.__cause__, pydantic.ValidationError):
        return input_error(error.__cause__)
    name = str(error.argument.name) if error.argument else ""
    match error:
        case MissingArgumentError():
            message = "missing; give a value"
        case UnusedCliTokensError():
            message = f"unexpected arguments: {' '.join(error.unused_tokens or ())}"
        case CoercionError() if error.token and error.msg:
            message = f"{error.token.value!r} is not {error.msg}"
        case _:
            message = one_line(error).rstrip(".")
    if name.startswith("--"):
        return InputError(message, option=name[2:].replace("-", "_"))
    return InputError(f"{name}: {message}" if name else message)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the option that is meant by an unknown name: one with the same initials, with all its words, or alike.

    >>> nearest("--lr", ["--lora-r", "--learning-rate"]), nearest("--epochs", ["--eval-steps", "--num-train-epochs"])
    ('--learning-rate', '--num-train-epochs')
    """
    words = name.removeprefix("--").replace("_", "-").split("-")
    options = {option: option[2:].split("-") for option in known if option.startswith("--")}
    initials = [option for option, parts in options.items() if "".join(part[0] for part in parts) == "".join(words)]
    whole = [option for option, parts in options.items() if {*words} <= {*parts}]
    near = [*sorted(initials, key=len, reverse=True), *whole, *difflib.get_close_matches(name, options, 1, 0.7)]
    return near[0] if near else None
