"""The folder of a study: its parts, what killed workers left, and the lock of the process that writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shortstack.errors import InputError
from shortstack.machine.files import read_json, remove, rename_new
from shortstack.machine.locks import OutputLock

WEIGHTS = "*.safetensors"
STATES = (".training", ".rounds", ".logs", ".lock")  # of healings, by their suffixes; a worker may hold a lock still


@dataclass(frozen=True)
class Folder:
    """The paths of a study's parts."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "runs.sqlite"

    @property
    def study(self) -> Path:
        return self.root / "study.yaml"

    def artefacts(self, key: str) -> Path:
        """Return the folder of a finished step."""
        return self.root.absolute() / "artefacts" / key

    def partial(self, key: str) -> Path:
        """Return the folder that a worker writes."""
        return self.root.absolute() / "partial" / key

    def log(self, key: str) -> Path:
        return self.root.absolute() / "logs" / f"{key[:12]}.txt"

    def last_line(self, key: str) -> str:
        """Return the last line of a step's log: the progress of a running step."""
        if not self.log(key).exists():
            return ""
        return (self.log(key).read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]

    def take(self, key: str) -> None:
        """Move what a step wrote to its folder, over what a run left there that was killed before it recorded the step."""
        shutil.rmtree(self.artefacts(key), ignore_errors=True)
        rename_new(self.partial(key), self.artefacts(key))

    def weights(self, key: str) -> list[Path]:
        return list(self.artefacts(key).glob(WEIGHTS))

    def has_weights(self, key: str) -> bool:
        """Return True if all weight files of a step exist: a killed run may have removed some of them."""
        files = {path.name for path in self.weights(key)}
        indices = [read_json(index)["weight_map"] for index in self.artefacts(key).glob(f"{WEIGHTS}.index.json")]
        return bool(files) and all(set(index.values()) <= files for index in indices)

    def clear_partial(self, *, states: bool = True) -> None:
        """Remove what killed workers left. states: keep the states of healings, which continue from them."""
        for path in (self.root / "partial").iterdir():
            if not (states and path.name.endswith(STATES)):
                remove(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder against other processes; the lock ends with the process."""
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root} is a file; name a folder", option="output")
        with OutputLock(self.root, self.root / "lock"):
            for name in ("artefacts", "partial", "logs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            yield

    @property
    def is_held(self) -> bool:
        """Return True if a process is writing here."""
        if not (self.root / "lock").exists():
            return False
        try:
            with FileLock(self.root / "lock", timeout=0):
                return False
        except (Timeout, OSError):  # a folder that cannot be written: nobody can tell
            return True
