"""The folder of a run that is not finished: its state, and what it was started with, so that only the same run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.errors import InputError, OutputError
from shortstack.machine.files import finite, save_json

SETTINGS = "run.json"
COMPLETE = "complete"  # in the folder of a state, the last file that is written


@dataclass(frozen=True)
class Unfinished:
    """`<out>.training`, or another kind: the states of a run, and in run.json its settings."""

    out: Path
    kind: str = "training"

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.{self.kind}")

    def open(self, settings: Mapping[str, Any], *, resume: bool | None) -> Path:
        """The folder, for a new run or to go on; resume: None refuses where a run is unfinished, False removes it.

        A run that has come to nothing yet, or was refused after it began, is in nobody's way.
        """
        if not self.check(settings, resume=resume):
            self.remove()
            self.folder.mkdir(parents=True)
            save_json(self.folder / SETTINGS, settings)
        return self.folder

    def check(self, settings: Mapping[str, Any], *, resume: bool | None) -> bool:
        """Whether there is a run to go on with."""
        if resume is None and self.folder.exists() and any(path.is_dir() for path in self.folder.iterdir()):
            raise OutputError(
                f"one{self._place}",
                expected="no unfinished run for this output",
                fix="turn resume on to go on, or off to start again",
                where=self.folder,
            )
        begun = self.settings() if resume else {}
        if begun:
            self._check_same(begun, settings)
        return bool(begun)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the unfinished run; empty if there is none."""
        path = self.folder / SETTINGS
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return settings

    def summary(self) -> str:
        """A line for people: what there is to go on with."""
        if not self.settings():
            return f"Nothing unfinished at {self.folder}: this run starts from the beginning."
        return f"An unfinished run lies at {self.folder}{self._place}."

    @property
    def _place(self) -> str:
        state = newest_state(self.folder)
        return f", at step {step_of(state)}" if state else ""

    def _check_same(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        before, after = dict(_flat(then)), dict(_flat(json.loads(json.dumps(finite(dict(now))))))
        for name in sorted(before.keys() | after.keys(), key=_unclear):
            if before.get(name) != after.get(name):
                raise InputError(
                    after.get(name),
                    expected=f"{name} {before.get(name)}, as when {self.folder} was begun",
                    fix="ask for the same, or turn resume off to start again",
                    option="resume",
                )

    def remove(self) -> None:
        """Remove the folder: the run has ended, or starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)


def newest_state(folder: Path) -> Path | None:
    """The folder of the last state that was written whole."""
    states = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(states, key=step_of, default=None)


def step_of(state: Path) -> int:
    """The step after which a state was kept."""
    return int(state.name.rpartition("-")[2])


def _unclear(name: str) -> tuple[bool, str]:
    """Sort key that puts a setting's name before digests of its content."""
    return name.endswith(("sha256", ".weights", ".config", ".beside")), name


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
