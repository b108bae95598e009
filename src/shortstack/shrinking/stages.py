"""Results of stages in the folder of an unfinished shrink, each under the digest of its inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from shortstack.checkpoint import Checkpoint
from shortstack.machine.cache import content_key
from shortstack.machine.files import atomic_write, remove

Result = TypeVar("Result")
LATE = ".late.json"


@dataclass(frozen=True)
class Stages:
    """A folder of results. common: what all of them depend on. A corrected option leaves what it does not touch.

    source: the model that checkpoints among them were made from.
    """

    folder: Path
    common: Mapping[str, object]
    source: Checkpoint

    def place(self, stage: str, **inputs: object) -> Path:
        """Return where a stage's result lies."""
        return self.folder / f"{stage}-{content_key(stage, **self.common, **inputs)[:16]}"

    def result(
        self,
        stage: str,
        kind: type[Result],
        make: Callable[[], Result],
        late: Callable[[Result], bool] = lambda _: False,
        /,
        **inputs: object,
    ) -> Result:
        """Return a dataclass: as it was left, or made now. late: whether there was no time for some of it: see forget()."""
        place = self.place(stage, **inputs)
        for known in (place.with_suffix(".json"), place.with_suffix(LATE)):
            if known.exists():
                return loaded(known, kind)
        result = make()
        save(place.with_suffix(LATE if late(result) else ".json"), result)
        return result

    def checkpoint(self, stage: str, make: Callable[[Path], Any], **inputs: object) -> Checkpoint:
        """Return a checkpoint directory: as it was left, or made now."""
        place = self.place(stage, **inputs)
        if not place.exists():
            make(place)
        return self.source.derived(place)


def folder_of(out: Path) -> Path:
    """Return where the stages of an output lie."""
    return out.with_name(f"{out.name}.partial")


def bytes_in(folder: Path) -> int:
    """Count the bytes that lie on the disk already, of a run that goes on."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def forget(folder: Path) -> None:
    """Remove the results that lack what there was no time for, so that a run with more time makes them anew."""
    for path in folder.glob(f"*{LATE}"):
        remove(path)


def save(path: Path, result: Any) -> None:
    """Write a dataclass as JSON; NaN stays NaN."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(asdict(result), default=str), encoding="utf-8")


def loaded(path: Path, kind: type[Result]) -> Result:
    """Read a result that save() wrote."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(path.read_bytes())
