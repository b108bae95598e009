"""The folder of an unfinished run: transformers' checkpoints, and run.json with the run's settings and seconds used."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shortstack.errors import DataError, InputError
from shortstack.machine.clock import Clock
from shortstack.machine.files import check_new, discard, finite, read_json, save_json
from shortstack.machine.progress import Progress, first_process, say

RUN = "run.json"
STATE = "trainer_state.json"  # the last file of a checkpoint
BEST = "best.safetensors"
NOTE_SECONDS = 2.0  # between two notes of the seconds used


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint that was written to its end."""
    places = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}")]
    return max(places, key=lambda place: int(place.name.rpartition("-")[2]), default=None)


class Unfinished:
    """The folder `<out>.training`, in which an interrupted run goes on. notes: values beside the settings."""

    def __init__(self, out: Path, kind: str = "training") -> None:
        self.folder = out.with_name(f"{out.name}.{kind}")
        self.settings: Mapping[str, Any] = {}
        self.notes: dict[str, Any] = {}

    def open(self, settings: Mapping[str, Any]) -> None:
        """Go on with a run of the same settings, or begin anew; refuse a folder that holds something else."""
        self.settings = json.loads(json.dumps(finite(dict(settings))))
        run = self._read()
        if run is None and self.folder.exists() and any(self.folder.iterdir()):
            check_new(self.folder)
        if run and run["settings"] == self.settings:
            self.notes = run["notes"]
            place = last_checkpoint(self.folder)
            step = f" at step {place.name.rpartition('-')[2]}" if place else ""
            self._say(f"continuing the unfinished run{step}")
        elif run:
            self.begin_anew("other options, data or model than the unfinished run")
        elif first_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.note()

    def begin_anew(self, why: str) -> None:
        self._say(f"beginning anew: {why}")
        self.notes = {}
        if first_process():
            self.remove()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.note()

    def note(self, **notes: Any) -> None:
        """Keep values for a run that goes on from here."""
        self.notes |= notes
        if first_process():
            save_json(self.folder / RUN, {"settings": self.settings, "notes": self.notes})

    def timing(self, clock: Clock, progress: Progress) -> Progress:
        """Return the progress display; it also notes the seconds used, every few seconds."""
        noted = time.monotonic()

        def show(stage: str, done: int, total: int, /, *, note: str = "") -> None:
            nonlocal noted
            progress(stage, done, total, note=note)
            if time.monotonic() - noted > NOTE_SECONDS:
                self.note(seconds=clock.used)
                noted = time.monotonic()

        return show

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Remove the folder after an error, not after a signal: the next run begins anew."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except InputError:  # refused: there is nothing to go on from
            self.remove()
            raise
        except BaseException:
            self.remove()
            self._say("removed after an error: the next run begins anew")
            raise

    def remove(self) -> None:
        """Remove the folder."""
        if first_process():
            with suppress(OSError):
                discard(self.folder)

    def _read(self) -> dict[str, Any] | None:
        with suppress(DataError):
            run = read_json(self.folder / RUN)
            return run if {"settings", "notes"} <= run.keys() else None
        return None

    def _say(self, what: str) -> None:
        if first_process():
            say(f"{self.folder}: {what}.")
