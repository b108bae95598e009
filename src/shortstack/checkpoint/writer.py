"""Writing a checkpoint: atomic or absent, its digests taken on the way, the rename last."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from shortstack.checkpoint.card import CardContent, licence_of, model_card
from shortstack.checkpoint.file_names import CARD, INDEX, RECORD, SINGLE, TEMPLATES
from shortstack.checkpoint.pieces import WrittenFile
from shortstack.checkpoint.safetensors import StoredTensor, write_shard
from shortstack.errors import OutputError
from shortstack.machine.files import check_disk, check_new, file_digest, rename_new, scratch_beside, sync_tree
from shortstack.machine.locks import OutputLock
from shortstack.machine.progress import Progress, silent

WRITERS = 2  # shards written at once: while one waits for the disk to have it, the next is copied


class _Stopped(Exception):
    """Raised inside a writer whose work nobody wants any more."""


class _Writing:
    """Shards that several threads write into a folder."""

    def __init__(self, folder: Path, shards: Sequence[Sequence[StoredTensor]], progress: Progress) -> None:
        width = len(shards)
        self.shards, self.progress, self.done = shards, progress, 0
        self.names = [
            SINGLE if width == 1 else f"model-{n:05d}-of-{width:05d}.safetensors" for n in range(1, width + 1)
        ]
        self.paths = [folder / name for name in self.names]
        self.total = sum(tensor.size for shard in shards for tensor in shard)
        self.lock, self.stop, self.pool = threading.Lock(), threading.Event(), ThreadPoolExecutor(WRITERS)
        self.futures = [
            self.pool.submit(write_shard, path, shard, self._advance)
            for path, shard in zip(self.paths, shards, strict=True)
        ]

    def result(self) -> dict[str, WrittenFile]:
        """Wait until all files are written, and return them by name."""
        return {name: future.result() for name, future in zip(self.names, self.futures, strict=True)}

    def halt(self) -> None:
        """Stop every thread at its next block and wait until none writes: a signal may have hidden one from the pool."""
        self.stop.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in self.futures if not future.cancelled()])

    def _advance(self, count: int) -> None:
        if self.stop.is_set():
            raise _Stopped
        with self.lock:
            self.done = min(self.done + count, self.total)
            self.progress("writing weights", self.done, self.total)


class CheckpointWriter:
    """A context in which `<out>.partial-<id>` is filled; commit() renames it to `out`, else nothing is left."""

    def __init__(self, out: str | Path, *, source: Path, nbytes: int) -> None:
        """Check the output and its room. nbytes: what will be written, checked against the free space before anything is.

        The output is locked in the context; who computes long before that holds it by held().
        """
        self.out, self.source = Path(out), source
        self.files: dict[str, WrittenFile] = {}
        here, there = self.out.resolve(), source.resolve()
        if here == there or there in here.parents:
            raise OutputError(f"{self.out} lies in {source}, which is read; name another place", option="output")
        check_new(self.out, make_folders=True)
        check_disk(self.out, nbytes)
        self.lock, self.opened = OutputLock(self.out), ExitStack()
        self.writing: _Writing | None = None

    @contextmanager
    def held(self) -> Iterator[Path]:
        """Keep other processes from making the output while what is to be written is computed. Gives a folder beside it."""
        with self.lock, scratch_beside(self.out) as folder:  # in this order: a live writer's folder is not cleared away
            yield folder

    def __enter__(self) -> CheckpointWriter:
        self.partial = self.opened.enter_context(self.held())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written, and the parents made for it; after commit() there is neither."""
        if self.writing:
            self.writing.halt()
        self.opened.close()

    def begin(self, shards: Sequence[Sequence[StoredTensor]], *, progress: Progress = silent) -> None:
        """Write these weights meanwhile; tensors() then waits for them, or where others were meant, writes those."""
        self.writing = _Writing(self.partial, shards, progress)

    def tensors(self, shards: Sequence[Sequence[StoredTensor]], *, progress: Progress = silent) -> None:
        """Write the weights, one file per entry of `shards`, and the index when there is more than one."""
        if self.writing and self.writing.shards != shards:
            self.writing.halt()
            for path in self.writing.paths:
                path.unlink(missing_ok=True)
            self.writing = None
        if self.writing is None:
            self.begin(shards, progress=progress)
        assert self.writing  # noqa: S101  just begun
        self.files |= self.writing.result()
        weight_map = {
            tensor.name: file for file, shard in zip(self.writing.names, shards, strict=True) for tensor in shard
        }
        if len(shards) > 1:
            total = self.writing.total
            self.json(INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})

    def json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        self._write(name, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())

    def copy(self, path: Path) -> None:
        """Copy a side file byte for byte; further chat templates keep their folder."""
        nested = path.parent.name == TEMPLATES
        self._write(f"{TEMPLATES}/{path.name}" if nested else path.name, path.read_bytes())

    def _write(self, name: str, content: bytes) -> None:
        path = self.partial / name
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
        self.files[name] = WrittenFile(len(content), file_digest(path))

    def commit(self, record: Mapping[str, Any]) -> Path:
        """Write shortstack.json with every file's size and sha256, and the card; then rename the directory into place."""
        manifest = {name: {"size": file.size, "sha256": file.sha256} for name, file in sorted(self.files.items())}
        self.json(RECORD, {**record, "files": manifest})
        card = model_card(self.out.name, record, CardContent(licence=licence_of(self.source)))
        (self.partial / CARD).write_text(card, encoding="utf-8")  # not in the manifest: its words are its owner's
        sync_tree(self.partial)
        rename_new(self.partial, self.out)
        return self.out


def layout(tensors: Sequence[StoredTensor], origin: Mapping[str, str]) -> list[list[StoredTensor]]:
    """Group tensors into output shards as the source had them; origin: tensor -> file."""
    shards: list[list[StoredTensor]] = []
    last = ""
    for tensor in tensors:
        file = origin.get(tensor.name, last)
        if file != last or not shards:
            shards.append([])
        shards[-1].append(tensor)
        last = file
    return shards
