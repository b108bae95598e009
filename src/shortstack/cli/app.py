"""The program around the verbs: signals, errors and warnings."""

from __future__ import annotations

import difflib
import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from shortstack.cli import console
from shortstack.cli.verbs import HELP, VERBS, listing
from shortstack.errors import InputError, ShortstackError, ShortstackWarning, is_out_of_memory, one_line
from shortstack.machine.files import FULL, disk_full
from shortstack.machine.progress import hush_libraries, say


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for a terminal that has no signs but ASCII's
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, _terminated)
    hush_libraries()
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        _run(sys.argv[1:])


def _run(words: Sequence[str]) -> None:
    """Run a verb; print its error in one line, and exit with its code."""
    try:
        run(words)
        _flush()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except ShortstackError as error:
        _leave(error, error.exit_code)
    except BrokenPipeError:  # the reader of stdout has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            reason = one_line(error) or type(error).__name__
            _leave(ShortstackError(f"out of memory ({reason}); free some, or process less text at once"), 1)
        if not isinstance(error, OSError):
            raise
        _leave(_system_error(error), 1 if error.errno in (*FULL, errno.EIO) else 2)


def run(words: Sequence[str]) -> None:
    if not words or words[0] in HELP:
        sys.stdout.write(listing())
        return
    if words[0] not in VERBS and not words[0].startswith("-"):
        near = difflib.get_close_matches(words[0], VERBS, 1)
        advice = f"did you mean {near[0]}?" if near else "`shortstack --help` lists the verbs"
        raise InputError(f"{words[0]!r} is not a verb; {advice}")

    from shortstack.cli.parsing import call

    call(words)


def _flush() -> None:
    """Write out stdout, so that a full disk is an error and not lost when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that it is not tried again
        raise


def _leave(error: ShortstackError, code: int) -> NoReturn:
    if {"-v", "--verbose"} & {*sys.argv}:
        traceback.print_exc()
    console.fail(error)
    sys.exit(code)


def _system_error(error: OSError) -> ShortstackError:
    if full := disk_full(error):
        return full
    return ShortstackError(f"{error.filename or 'the disk'}: {error.strerror or repr(error)}")


def _show_warning(before: Any, message: Warning | str, category: type[Warning], *where: Any, **keywords: Any) -> None:
    """Print a warning of the package as a line, without the code location that Python adds; others as before."""
    if issubclass(category, ShortstackWarning):
        say(f"Warning: {message}")
    else:
        before(message, category, *where, **keywords)


def _terminated(number: int, _frame: object) -> NoReturn:
    """End as ctrl-C does, through the context managers, so that no half-written output stays."""
    say(f"stopped by {signal.Signals(number).name}")
    sys.exit(128 + number)
