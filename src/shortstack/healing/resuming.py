"""The folder of an unfinished run: transformers' checkpoints, and run.json with the run's settings and seconds used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shortstack.errors import DataError
from shortstack.machine.files import check_new, clear, finite, make_folder, read_json, save_json
from shortstack.machine.progress import say

RUN = "run.json"
STATE = "trainer_state.json"  # the last file of a checkpoint
BEST = "best.safetensors"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint that was written to its end."""
    places = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}")]
    return max(places, key=lambda place: int(place.name.rpartition("-")[2]), default=None)


class Unfinished:
    """The folder `<out>.training`. A run interrupted by a signal goes on with the same settings; after others it goes.

    notes: values that the run keeps beside its settings.
    """

    def __init__(self, out: Path, kind: str = "training") -> None:
        self.folder = out.with_name(f"{out.name}.{kind}")
        self.settings: Mapping[str, Any] = {}
        self.notes: dict[str, Any] = {}

    def open(self, settings: Mapping[str, Any]) -> None:
        """Go on with a run of the same settings, or begin anew; refuse a folder that holds something else."""
        self.settings = json.loads(json.dumps(finite(dict(settings))))
        run = self._read()
        if run is None and self.folder.exists() and any(self.folder.iterdir()):
            check_new(self.folder, make_folders=True)
        if run and run["settings"] == self.settings:
            self.notes = run["notes"]
            say(f"Continuing the unfinished run in {self.folder}{self._place()}.")
            return
        if run:
            say(f"The unfinished run in {self.folder} had other settings or another model; starting anew.")
            self.remove()
        make_folder(self.folder)
        self.note()

    def join(self) -> None:
        """Take part in the run that another process has opened."""
        self.notes = (self._read() or {"notes": {}})["notes"]

    def note(self, **notes: Any) -> None:
        """Keep values for the run that goes on from here."""
        self.notes |= notes
        save_json(self.folder / RUN, {"settings": self.settings, "notes": self.notes})

    def _read(self) -> dict[str, Any] | None:
        with suppress(DataError):
            run = read_json(self.folder / RUN)
            return run if {"settings", "notes"} <= run.keys() else None
        return None

    def _place(self) -> str:
        place = last_checkpoint(self.folder)
        return f" at step {place.name.rpartition('-')[2]}" if place else " from the beginning"

    def remove(self) -> None:
        """Remove the folder, run.json last: by it the folder is known as one of ours."""
        with suppress(OSError):
            save_json(self.folder / RUN, {"settings": {}, "notes": {}})
            clear(self.folder, last=(RUN,))
