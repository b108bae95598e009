"""The program around the verbs: its version, and what becomes of errors and signals."""

from __future__ import annotations

import errno
import functools
import inspect
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info

from shortstack.cli import console
from shortstack.cli.help import HELP, check_near, place, spelled
from shortstack.cli.option_groups import grouped
from shortstack.errors import ShortstackError, ShortstackWarning, is_out_of_memory, one_line
from shortstack.machine.files import FULL, disk_full
from shortstack.machine.progress import hush_kernels, say
from shortstack.machine.stopping import forget_signals, heard, last_heard

STOPS = (KeyboardInterrupt, SystemExit)  # what a signal raises; where Python loses it, it is raised again

ALL = "shortstack.help.all"  # of a context: all options are shown


class Sectioned(TyperCommand):
    """A verb whose --help gives examples and common options, whose --help-all lists all under the headings of their groups,
    and which hears what other tools call its options.
    """

    @property
    def common(self) -> tuple[str, ...]:
        """The options that --help shows; (): all."""
        return HELP[self.name or ""].options

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for each in self.params for name in (*each.opts, *each.secondary_opts)}
        words = spelled(args, known)
        check_near(words, known)
        rest: list[str] = super().parse_args(ctx, words)
        return rest

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        _write_examples(formatter, self.name or "")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        by_group, left_out = ctx.meta.get(ALL, False), 0
        every = by_group or not self.common
        sections: dict[str, list[tuple[str, str]]] = {
            name: [] for name in ("Arguments", "Options")
        }  # a verb's own first
        listed = self.get_params(ctx)
        for parameter in listed if by_group else sorted(listed, key=_shown_at):
            told = parameter.get_help_record(ctx)
            option = parameter.param_type_name == "option"
            if not told:
                continue
            names = {name.lstrip("-") for name in parameter.opts}
            if not every and option and not names & {*self.common, "help", "help-all"}:
                left_out += 1
                continue
            kind = getattr(parameter, "rich_help_panel", None) if by_group else None
            sections.setdefault(kind or ("Options" if option else "Arguments"), []).append(told)
        for heading, rows in sections.items():
            if not rows:
                continue
            with formatter.section(heading):
                formatter.write_dl(rows)
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"{left_out} more: shortstack {self.name} --help-all")


def _shown_at(parameter: Any) -> int:
    """Arguments come first, then options in their order."""
    return -1 if parameter.param_type_name == "argument" else place(name.lstrip("-") for name in parameter.opts)


class Verbs(Mapping[str, Any]):
    """The verbs by name, each imported when it is asked for: to list them takes none of their options."""

    def __iter__(self) -> Iterator[str]:
        return (name for name in HELP if name)

    def __len__(self) -> int:
        return len(HELP) - 1

    def __getitem__(self, name: str) -> Any:
        if not name or name not in HELP:
            raise KeyError(name)
        return _command(name)


@functools.cache
def _command(name: str) -> Any:
    import_module(f"shortstack.cli.{name}")
    (found,) = (each for each in app.registered_commands if each.name == name)
    return get_command_from_info(found, pretty_exceptions_short=False, rich_markup_mode=None)


class Exampled(TyperGroup):
    """The program, whose --help gives examples, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = Verbs()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, shown.summary) for name, shown in HELP.items() if name])

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        _write_examples(formatter, "")


def _write_examples(formatter: Any, verb: str) -> None:
    with formatter.section("Examples"):
        for example in HELP[verb].examples:
            formatter.write(f"{'':{formatter.current_indent}}shortstack {example}\n")  # in one line, however long


app = typer.Typer(
    name="shortstack",
    cls=Exampled,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=HELP[""].summary,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"shortstack {version('shortstack')}")
        raise typer.Exit


def verb(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A function as a verb of the program; parameters that are groups of options become those options."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        called = name or function.__name__
        some = bool(HELP[called].options)
        return app.command(called, cls=Sectioned)(_with_all(grouped(function), hidden=not some))

    return register


def _with_all(function: Callable[..., None], *, hidden: bool) -> Callable[..., None]:
    """The verb with --help-all, which is hidden where --help shows all."""
    said = typer.Option(
        "--help-all", help="Show all options and exit.", is_eager=True, callback=_show_all, hidden=hidden
    )
    shown = inspect.Parameter(
        "help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, said]
    )
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*, help_all: bool = False, **options: Any) -> None:
        function(**options)

    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), shown])  # type: ignore[attr-defined]
    call.__annotations__ = {**function.__annotations__, "help_all": shown.annotation}
    return call


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a verb."""


def main() -> None:
    """The `shortstack` command."""
    hush_kernels()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for a terminal that has no signs but ASCII's
    with _ended_by_signals(), _warnings_in_lines():
        try:
            _run()
        except ShortstackError as error:
            _leave(error, error.exit_code)
        except BrokenPipeError:  # whoever read has read enough
            sys.exit(1)
        except (OSError, MemoryError, RuntimeError, ImportError) as error:
            if is_out_of_memory(error):
                _leave(_no_memory(error), 1)
            if not isinstance(error, OSError):
                raise
            _leave(_of_the_system(error), 1 if error.errno in (*FULL, errno.EIO) else 2)


def _leave(error: ShortstackError, code: int) -> NoReturn:
    """Say an error, with where it comes from on request, and end."""
    if {"-v", "--verbose"} & {*sys.argv}:
        traceback.print_exc()
    console.fail(error)
    sys.exit(code)


def _run() -> None:
    """The verb that was typed, and what it printed written to the end."""
    try:
        code, number = _exit_code(), last_heard()
        sys.exit(128 + number if number and not code else code)  # it may have ended well although it was told to stop
    finally:
        try:
            sys.stdout.flush()  # what has no room is said here: when the interpreter ends there is no one to say it
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that it is not tried again
            raise


def _exit_code() -> int | str | None:
    """Run the verb; the code it ends with."""
    try:
        app()
    except SystemExit as ended:
        return ended.code
    return None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as ctrl-C does; whoever called main() has its own handlers back afterwards."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]
    obeyed = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # ignored under nohup
    before, hook = {number: signal.signal(number, _stopped) for number in obeyed}, sys.unraisablehook
    sys.unraisablehook = lambda lost: None if last_heard() and isinstance(lost.exc_value, STOPS) else hook(lost)
    try:
        yield
    finally:
        forget_signals()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _warnings_in_lines() -> Iterator[None]:
    """What the package warns of stands in a line of its own, without the place in the code that Python adds."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, ShortstackWarning):
            say(f"Warning: {message}")
        else:
            before(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _stopped(number: int, _frame: object) -> NoReturn:
    error = heard(number)
    if number != signal.SIGINT:
        say(f"stopped by {signal.Signals(number).name}")
    raise error  # leaves through the context managers, so that no half-written output stays


def _no_memory(error: BaseException) -> ShortstackError:
    found = one_line(error) or type(error).__name__
    fix = "free memory, take a larger machine, or less text at once; --dry-run of a verb says what it needs"
    return ShortstackError(found, expected="room for what is computed", fix=fix, where="memory")


def _of_the_system(error: OSError) -> ShortstackError:
    if full := disk_full(error):
        return full
    expected, fix = "a file that can be used", "check its permissions"
    if error.errno == errno.EIO:
        expected, fix = "a disk that works", "check it (the system's log may say more), and run the command again"
    return ShortstackError(
        error.strerror or repr(error), expected=expected, fix=fix, where=error.filename or "the disk"
    )
