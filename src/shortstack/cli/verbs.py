"""The verbs, each imported when it is asked for, and how cyclopts reads what is typed."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

from shortstack.errors import InputError

if TYPE_CHECKING:
    from cyclopts import App, Token

# By verb, in the order of --help: the first line of its docstring, so that listing the verbs imports none of them.
VERBS = {
    "score": "Score every layer by one or more metrics, in one pass over the layers.",
    "depth-curve": "Measure the model cut at every depth, in one pass over the layers.",
    "plan": "Choose the layers to remove, from scores or a model.",
    "prune": "Write the model without some layers, by copying bytes.",
    "repair": "Refit the kept layers of a cut in closed form.",
    "verify": "Check that a checkpoint is whole and computes what it should.",
    "heal": "Train a pruned checkpoint to get back what it lost.",
    "evaluate": "Measure perplexity, tasks, and what the model writes.",
    "shrink": "Prune, repair, heal and measure a model in one command.",
    "study": "Run a grid of trials, each step once.",
    "watch": "Show how far a running study is.",
    "profile": "Count parameters, bytes and operations; measure speed and memory.",
    "compare": "Compare pruned, quantised and narrowed models at equal bytes.",
    "report": "Show what a study found, as one page or as tables.",
    "export": "Export a checkpoint to llama.cpp, Ollama or the hub.",
    "demo": "Shorten a small model that comes with the package, and measure it.",
    "ls": "List metrics, strategies, methods, recipes, tasks and texts.",
    "cache": "Show or clear the cache.",
}
HELP = ("--help", "-h")


def listing() -> str:
    verbs = "".join(f"  {name:11}  {summary}\n" for name, summary in VERBS.items())
    return (
        "Usage: shortstack VERB [OPTIONS] ...\n\n"
        "Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result.\n\n"
        f"$ shortstack shrink org/model --drop 25% --data notes.txt -o small\n\n{verbs}\n"
        "`shortstack VERB --help` explains its options, `-h` lists them. --version, --install-completion\n"
    )


def run(words: Sequence[str]) -> None:
    if not words or words[0] in HELP:
        sys.stdout.write(listing())
        return
    if words[0] not in VERBS and not words[0].startswith("-"):
        near = difflib.get_close_matches(words[0], VERBS, 1)
        fix = f"did you mean {near[0]}?" if near else "`shortstack --help` lists them"
        raise InputError(repr(words[0]), expected="a verb", fix=fix, where="shortstack")

    from cyclopts import CycloptsError

    from shortstack.cli.refusals import refused

    try:
        app(short="-h" in words)(words)
    except CycloptsError as error:
        raise refused(error) from None


@functools.cache
def app(*, short: bool = False) -> App:
    """Return the command line; short: --help names options without explaining them."""
    from cyclopts import App, Group, Parameter

    from shortstack.cli.help import Help

    formatter: Any = Help(short=short)
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
    from cyclopts import convert

    from shortstack.machine.formats import amount_of

    kinds, text = {*get_args(hint)} or {hint}, tokens[0].value
    if int not in kinds:
        return convert(hint, tokens)
    number = amount_of(text)
    if isinstance(number, int) or (number is not None and float in kinds):
        return number
    if str in kinds:
        return text
    raise ValueError("a whole number, or a share such as 10%" if float in kinds else "a whole number")
