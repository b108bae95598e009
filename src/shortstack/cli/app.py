"""The program around the verbs: what becomes of errors, warnings and signals."""

from __future__ import annotations

import difflib
import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from shortstack.cli import console
from shortstack.cli.verbs import HELP, VERBS, listing
from shortstack.errors import InputError, ShortstackError, ShortstackWarning, is_out_of_memory, one_line
from shortstack.machine.files import FULL, disk_full
from shortstack.machine.progress import forget_signals, heard, hush_kernels, last_heard, say

STOPS = (KeyboardInterrupt, SystemExit)  # what a signal raises; where Python loses it, it is raised again


def main() -> None:
    hush_kernels()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for a terminal that has no signs but ASCII's
    with _ended_by_signals(), warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
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
    if {"-v", "--verbose"} & {*sys.argv}:
        traceback.print_exc()
    console.fail(error)
    sys.exit(code)


def _run() -> None:
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
    try:
        run(sys.argv[1:])
    except SystemExit as ended:
        return ended.code
    except KeyboardInterrupt:
        return 130
    return 0


def run(words: Sequence[str]) -> None:
    if not words or words[0] in HELP:
        sys.stdout.write(listing())
        return
    if words[0] not in VERBS and not words[0].startswith("-"):
        near = difflib.get_close_matches(words[0], VERBS, 1)
        fix = f"did you mean {near[0]}?" if near else "`shortstack --help` lists them"
        raise InputError(repr(words[0]), expected="a verb", fix=fix, where="shortstack")

    from shortstack.cli.parsing import call

    call(words)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the program at SIGTERM and SIGHUP as ctrl-C does; whoever called main() has its own handlers back afterwards."""
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


def _show_warning(before: Any, message: Warning | str, category: type[Warning], *where: Any, **keywords: Any) -> None:
    """Print a warning of the package as a line, without the code location that Python adds; others as before."""
    if issubclass(category, ShortstackWarning):
        say(f"Warning: {message}")
    else:
        before(message, category, *where, **keywords)


def _stopped(number: int, _frame: object) -> NoReturn:
    error = heard(number)
    if number != signal.SIGINT:
        say(f"stopped by {signal.Signals(number).name}")
    raise error  # leaves through the context managers, so that no half-written output stays


def _no_memory(error: BaseException) -> ShortstackError:
    message = one_line(error) or type(error).__name__
    fix = "free memory, use a larger machine, or process less text at once; --dry-run shows what a verb needs"
    return ShortstackError(message, expected="enough memory", fix=fix, where="memory")


def _of_the_system(error: OSError) -> ShortstackError:
    if full := disk_full(error):
        return full
    expected, fix = "a file that can be used", "check its permissions"
    if error.errno == errno.EIO:
        expected, fix = "a disk that works", "check it (the system's log may say more), and run the command again"
    return ShortstackError(
        error.strerror or repr(error), expected=expected, fix=fix, where=error.filename or "the disk"
    )
