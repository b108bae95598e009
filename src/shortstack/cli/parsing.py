"""How cyclopts reads what is typed, and the words of its help and of its errors. Imported when a verb is asked for."""

from __future__ import annotations

import difflib
import functools
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

import pydantic
from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    Token,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
    convert,
)

from shortstack.cli.verbs import HELP, VERBS
from shortstack.errors import InputError
from shortstack.machine.formats import amount_of
from shortstack.machine.options import check_choice_of, input_error

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel

NAMES = 26  # characters of the names of options, where they stand beside what is said of them
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def call(words: Sequence[str]) -> None:
    try:
        app(short="-h" in words)(words)
    except CycloptsError as error:
        raise _refused(error) from None


@functools.cache
def app(*, short: bool = False) -> App:
    """Return the command line; short: --help names options without explaining them."""
    formatter: Any = _Help(short=short)
    read = Parameter(converter=_read, negative_iterable=(), allow_repeating=True)
    made = App(
        name="shortstack",
        version=lambda: f"shortstack {version('shortstack')}",
        help_flags=HELP,
        help_format="plaintext",
        help_formatter=formatter,
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
    """Return the value that was typed: whole numbers, which cyclopts would round, and shares as 10% where they may stand."""
    kinds, text = {*get_args(hint)} or {hint}, tokens[0].value
    if int not in kinds:
        return convert(hint, tokens)
    number = amount_of(text)
    if isinstance(number, int) or (number is not None and float in kinds):
        return number
    if str in kinds:
        return text
    if text.removeprefix("-").isdecimal():  # negative: the option's bounds refuse it
        return int(text)
    raise ValueError("a whole number, or a share such as 10%" if float in kinds else "a whole number")


@dataclass(frozen=True)
class _Help:
    """The formatter of cyclopts' help; short: options are named, not explained."""

    short: bool

    def render_usage(self, _console: Any, _options: Any, usage: Any) -> None:
        _write([f"Usage: {usage}".strip()])

    def render_description(self, _console: Any, _options: Any, description: Any) -> None:
        paragraphs = description.primary_renderable.plain.strip().split("\n\n")
        _write("\n\n".join("\n".join(_filled(" ".join(paragraph.split()))) for paragraph in paragraphs).splitlines())

    def __call__(self, _console: Any, _options: Any, panel: HelpPanel) -> None:
        if self.short and panel.entries:
            _write(_filled(f"{panel.title}: {', '.join(map(_entry_name, panel.entries))}", "  "))
        elif panel.entries:
            _write([f"{panel.title}:", *(line for entry in panel.entries for line in _explained(entry))])


def _entry_name(entry: HelpEntry) -> str:
    return entry.positional_label or entry.positive_names[0]


def _explained(entry: HelpEntry) -> list[str]:
    """Return the lines of an option: its names and what it takes, what it does, its default."""
    names = [*entry.positive_shorts, *entry.positive_names] if not entry.positional_label else [entry.positional_label]
    if entry.default != "False":
        names += entry.negative_names
    left = f"  {', '.join(names)}" + (f" {entry.metavar}" if entry.metavar and not entry.positional_label else "")
    notes = [f"[default: {entry.default}]"] if entry.default not in (None, "False") else []
    notes += ["[required]"] if entry.required and not entry.positional_label else []
    lines = _filled(" ".join([entry.description.primary_renderable.plain, *notes]), " " * NAMES)
    lines[0] = lines[0] if len(left) < NAMES - 1 else " " * NAMES + lines[0]
    return [left.ljust(NAMES) + lines[0], *lines[1:]] if len(left) < NAMES - 1 else [left, *lines]


def _filled(text: str, indent: str = "") -> list[str]:
    """Return text in lines as wide as the terminal, all but the first indented."""
    width = shutil.get_terminal_size().columns
    lines = textwrap.wrap(text, max(width - len(indent), 20), break_long_words=False, break_on_hyphens=False)
    return [line if not number else indent + line for number, line in enumerate(lines)] or [""]


def _write(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, ""]))


def _refused(error: CycloptsError) -> InputError:
    """Return the error to show for one of cyclopts."""
    verb = " ".join(["shortstack", *(error.command_chain or ())])
    explained = f"`{verb} --help` explains its options"
    match error:
        case UnknownOptionError():
            name = str(error.token.keyword or error.token.value)
            near = nearest(name, (option for argument in error.argument_collection for option in argument.names))
            fix = f"did you mean {near}?" if near else explained
            return InputError("none of that name", expected=f"an option of {verb}", fix=fix, where=name)
        case UnusedCliTokensError():
            unused = " ".join(error.unused_tokens or ())
            return InputError(unused, expected="no more arguments", fix=explained, where=verb)
        case MissingArgumentError():
            name = error.keyword or _name(error)
            return InputError("none", expected="a value", fix=f"give one; {explained}", where=name)
        case ValidationError() if isinstance(error.__cause__, pydantic.ValidationError):
            return input_error(error.__cause__)
        case CoercionError():
            return _unread(error)
    return InputError(error, expected="valid options and arguments", fix=explained, where=verb)


def _unread(error: CoercionError) -> InputError:
    name, value = _name(error), error.token.value if error.token else ""
    choices = [choice for choice in get_args(error.target_type) if isinstance(choice, str)]
    if choices:
        try:
            check_choice_of(name.removeprefix("--").replace("-", "_"), value, choices)
        except InputError as wrong:
            return wrong if name.startswith("--") else wrong.but(option="", where=name)
    kinds: Iterable[Any] = get_args(error.target_type) or (error.target_type,)
    words = " or ".join(KINDS[kind] for kind in kinds if kind in KINDS) or "a value that it takes"
    return InputError(repr(value), expected=str(error.msg or words), fix="write one", where=name)


def _name(error: CycloptsError) -> str:
    return str(error.argument.name) if error.argument else "shortstack"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the option that is meant by a name that is none: one with the same initials, with all its words, or alike.

    >>> nearest("--lr", ["--lora-r", "--learning-rate"]), nearest("--epochs", ["--eval-steps", "--num-train-epochs"])
    ('--learning-rate', '--num-train-epochs')
    """
    words = name.removeprefix("--").replace("_", "-").split("-")
    options = {option: option[2:].split("-") for option in known if option.startswith("--")}
    initials = [option for option, parts in options.items() if "".join(part[0] for part in parts) == "".join(words)]
    whole = [option for option, parts in options.items() if {*words} <= {*parts}]
    near = [*sorted(initials, key=len, reverse=True), *whole, *difflib.get_close_matches(name, options, 1, 0.7)]
    return near[0] if near else None
