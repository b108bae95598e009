"""Signals while something trains: they wait until what is done is kept, not for the end of a step, and are sent again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))


class TrainingLeft(Exception):
    """Leaves training when the state is kept."""


class _PassLeft(BaseException):
    """Leaves the model while a batch passes it, before the state is kept; no library catches it."""


class Interruption:
    """Lets a signal interrupt training only where the state can be kept.

    keep: writes the state after the last whole step. alone: whether no other process waits for this one; if one does, all
    leave after the same step, which is for the caller to see to.
    """

    def __init__(self, keep: Callable[[], None], *, alone: bool) -> None:
        self.keep, self.alone = keep, alone
        self.signal = 0  # the last that was received
        self._in_pass = False

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Let signals wait until the state is kept, and send them again then."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        earlier = {number: signal.signal(number, self._receive) for number in handled}
        try:
            with suppress(TrainingLeft):
                try:
                    yield
                except _PassLeft:
                    self.keep()
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
        if self.signal:
            signal.raise_signal(self.signal)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Let a signal leave a batch that passes the model at once: the state is that after the last whole step."""
        if self.signal and self.alone:
            self.keep()
            raise TrainingLeft
        self._in_pass = self.alone
        try:
            yield
        finally:
            self._in_pass = False

    def _receive(self, number: int, _frame: object) -> None:
        self.signal = number
        if self._in_pass:
            self._in_pass = False
            raise _PassLeft
