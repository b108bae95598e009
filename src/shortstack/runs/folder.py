"""The folder of a study: where its parts lie, what killed workers left there, and the lock of who writes."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shortstack.errors import InputError
from shortstack.machine.files import read_json, remove, rename_new
from shortstack.machine.locks import OutputLock

WEIGHTS = "*.safetensors"
STATES = (".training", ".turns", ".logs", ".lock")  # of healings, by their suffixes; a worker may hold a lock still


@dataclass(frozen=True)
class Folder:
    """The places of a run store's parts."""

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

    def take(self, key: str) -> None:
        """Move what a step wrote to its folder, over what was left there by a run killed before it reported the step."""
        shutil.rmtree(self.artefacts(key), ignore_errors=True)
        rename_new(self.partial(key), self.artefacts(key))

    def weights(self, key: str) -> list[Path]:
        return list(self.artefacts(key).glob(WEIGHTS))

    def has_weights(self, key: str) -> bool:
        """Whether all weights of a step are there: a run that was killed may have removed some of their files."""
        there = {path.name for path in self.weights(key)}
        indices = [read_json(index)["weight_map"] for index in self.artefacts(key).glob(f"{WEIGHTS}.index.json")]
        return bool(there) and all(set(files.values()) <= there for files in indices)

    def partial(self, key: str) -> Path:
        return self.root / "partial" / key

    def progress(self, key: str) -> Path:
        return self.root / "partial" / f"{key}.progress.json"

    def log(self, key: str) -> Path:
        return self.root / "logs" / f"{key[:12]}.txt"

    def clear_partial(self, *, states: bool = True) -> None:
        """Remove what killed workers left half-written; states: but for states of healings, which go on from there."""
        for path in (self.root / "partial").iterdir():
            if not (states and path.name.endswith(STATES)):
                remove(path)

    def make(self) -> None:
        for name in ("artefacts", "partial", "logs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing here; the lock goes with the process, however it ends."""
        if self.root.exists() and not self.root.is_dir():
            fix = "name another output"
            raise InputError("a file", expected="a folder for a study", fix=fix, where=self.root)
        watching = f"wait for it, watch it ({shlex.join(['shortstack', 'watch', str(self.root)])})"
        with OutputLock(self.root, self.root / "lock", meanwhile=watching):
            self.make()
            yield
