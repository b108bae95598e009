"""Signals that end the program, and what becomes of them where nothing can be raised.

A handler raises wherever the program is; in the callback of a weak reference, or in a library that catches everything, that
gets lost. So it is remembered, and raised again before an output gets its name, where progress is told, and as a verb ends.
"""

from __future__ import annotations

import signal
import sys
import threading

_heard: list[int] = []


def heard(number: int) -> BaseException:
    """Remember a signal; returns what its handler is to raise."""
    _heard.append(number)
    return _raised(number)


def check_stopped() -> None:
    """Raise again what a handler raised, if the program goes on as if nothing had been.

    Only in the main thread, and not while an error or that very signal is being dealt with.
    """
    if _heard and threading.current_thread() is threading.main_thread() and sys.exc_info()[0] is None:
        raise _raised(_heard[-1])


def last_heard() -> int | None:
    """The signal that told the program to stop."""
    return _heard[-1] if _heard else None


def forget_signals() -> None:
    """The program that was stopped has ended."""
    _heard.clear()


def _raised(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
