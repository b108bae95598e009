"""A run that ends before its time: its state, what it was started with, so that only the same goes on, and signals."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.errors import InputError, OutputError
from shortstack.machine.files import (
    check_new,
    clear,
    finite,
    read_json,
    rename_new,
    save_json,
    scratch_beside,
    sync,
    sync_tree,
)

SETTINGS = "run.json"
COMPLETE = "complete"  # in the folder of a state, the last file that is written
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))


@dataclass(frozen=True)
class Unfinished:
    """The folder `<out>.training`, or of another kind: the states of a run, and in run.json its settings."""

    out: Path
    kind: str = "training"

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.{self.kind}")

    def open(self, settings: Mapping[str, Any], *, resume: bool | None) -> Path:
        """Make the folder for a new run, or find it to go on; resume: None refuses an unfinished run, False removes it.

        A run that has come to nothing yet, or was refused after it began, is in nobody's way; a folder of somebody else is.
        """
        if not self.check(settings, resume=resume):
            self.remove()
            with scratch_beside(self.folder) as scratch:  # it never is without its settings
                save_json(scratch / SETTINGS, settings)
                rename_new(scratch, self.folder)
        return self.folder

    def check(self, settings: Mapping[str, Any], *, resume: bool | None) -> bool:
        """Say whether a run of the same settings goes on."""
        self.check_ours()
        if resume is None and self.folder.exists() and any(path.is_dir() for path in self.folder.iterdir()):
            raise OutputError(
                f"one{self._place}",
                expected="no unfinished run for this output",
                fix="turn resume on to continue, or off to start over",
                where=self.folder,
            )
        begun = self.settings() if resume else {}
        if begun:
            self._check_same(begun, settings)
        return bool(begun)

    def check_ours(self) -> None:
        """Refuse a folder in the place of an unfinished run that is none: it has no settings."""
        empty = self.folder.is_dir() and not any(self.folder.iterdir())
        if not empty and not (self.folder / SETTINGS).is_file():
            check_new(self.folder, make_folders=True)

    def settings(self) -> dict[str, Any]:
        """Read the settings of the unfinished run; empty if there is none."""
        path = self.folder / SETTINGS
        return read_json(path) if path.exists() else {}

    def summary(self) -> str:
        if not self.settings():
            return f"Nothing unfinished at {self.folder}: this run starts from the beginning."
        return f"An unfinished run lies at {self.folder}{self._place}."

    @property
    def state(self) -> Path | None:
        """The last state that is whole; none of a run that is being removed."""
        return newest_state(self.folder) if self.settings() else None

    @property
    def _place(self) -> str:
        return f", at step {step_of(self.state)}" if self.state else ""

    def _check_same(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        before, after = dict(_flat(then)), dict(_flat(json.loads(json.dumps(finite(dict(now))))))
        for name in sorted(before.keys() | after.keys(), key=_unclear):
            if before.get(name) != after.get(name):
                option = name.removeprefix("asked.")
                as_then = f"{option} {before[name]}" if name in before else f"no {option}"
                raise InputError(
                    after.get(name),
                    expected=f"{as_then}, as when {self.folder} was begun",
                    fix="use the same options, or turn resume off to start again",
                    option="resume",
                )

    def remove(self) -> None:
        """Remove the folder, its settings last: by that file it is known for what it is."""
        with suppress(OSError):
            save_json(self.folder / SETTINGS, {})  # nothing goes on from what is left of it, if this is killed
            clear(self.folder, last=(SETTINGS,))


def mark_whole(state: Path) -> None:
    """Mark a state as whole when all of it is on the disk; only then do earlier ones go."""
    sync_tree(state)
    (state / COMPLETE).touch()
    sync_tree(state)
    sync(state.parent)
    for other in state.parent.glob("checkpoint-*"):
        if other != state:
            shutil.rmtree(other)


def newest_state(folder: Path) -> Path | None:
    """Find the folder of the last state that was written whole."""
    states = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(states, key=step_of, default=None)


def step_of(state: Path) -> int:
    return int(state.name.rpartition("-")[2])


def log_of(state: Path | None) -> list[dict[str, Any]]:
    """Read what Trainer logged until a state was kept."""
    return list(read_json(state / "trainer_state.json")["log_history"]) if state else []


def _unclear(name: str) -> tuple[bool, bool, str]:
    """Sort a setting's name before digests of its content, and minutes before all that a clock decides."""
    digest = name.endswith(("sha256", ".weights", ".config", ".beside"))
    return name != "schedule.minutes", digest or name.startswith("asked"), name


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


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
        """Let signals wait until the state is kept, and send them again then; it ends here, whatever their handlers do."""
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
            raise SystemExit(128 + self.signal)  # half a training is no finished one

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
