"""The folders of steps: on a path that every machine sees, or at an fsspec URL. Nothing else knows fsspec."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from shortstack.errors import InputError
from shortstack.machine.files import rename_new

WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Shared:
    """Folders on a path that every machine sees, one for each step by its key: workers write beside them."""

    root: Path

    def place(self, key: str) -> str:
        return str(self.root.absolute() / key)

    def take(self, key: str, written: Path) -> None:
        """Move it, over what a run left there that was killed before it could report the step."""
        shutil.rmtree(self.root / key, ignore_errors=True)
        rename_new(written, self.root / key)

    def has_weights(self, key: str) -> bool:
        return any((self.root / key).glob(WEIGHTS))

    def drop_weights(self, key: str) -> None:
        for path in (self.root / key).glob(WEIGHTS):
            path.unlink()


@dataclass(frozen=True)
class Remote:
    """Such folders at a URL. Workers copy what they read to their own disk, and back what they wrote."""

    url: str

    def place(self, key: str) -> str:
        return f"{self.url.rstrip('/')}/{key}"

    def take(self, key: str, written: Path) -> None:
        """Do nothing: the worker has put it there itself."""

    def has_weights(self, key: str) -> bool:
        return bool(self._weights(key))

    def drop_weights(self, key: str) -> None:
        files, paths = self._files(), self._weights(key)
        for path in paths:
            files.rm_file(path)

    def put(self, key: str, folder: Path) -> None:
        """Copy a folder there, over what a run left there that was killed before it could report the step."""
        files, place = self._files(), self._path(key)
        if files.exists(place):
            files.rm(place, recursive=True)
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            target = f"{place}/{path.relative_to(folder).as_posix()}"
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(path), target)

    def fetch(self, key: str, folder: Path) -> None:
        """Copy a folder from there."""
        files, place = self._files(), self._path(key)
        for path in files.find(place):
            name = path.removeprefix(f"{place}/")
            if ".." in Path(name).parts or Path(name).is_absolute():  # object stores have names that no folder has
                fix = "remove that object"
                raise InputError(repr(name), expected="names of files below it", fix=fix, where=place)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(target))

    def check(self) -> None:
        """Refuse a URL that nothing can be written to."""
        try:
            self._make()
        except (ImportError, ValueError, OSError) as error:  # what fsspec says of packages, protocols and places
            raise InputError(
                f"{self.url}: {error}",
                expected="a URL that fsspec can write to, such as s3://bucket/runs or file:///shared/runs",
                fix="install the package of that protocol, or leave it out where all machines see the folder",
                option="artefacts",
            ) from error

    def _make(self) -> None:
        if "://" not in self.url:
            raise ValueError("a path")
        self._files().makedirs(self._path(), exist_ok=True)

    def _weights(self, key: str) -> list[str]:
        files = self._files()
        files.invalidate_cache()  # a worker on another machine writes there
        return list(files.glob(f"{self._path(key)}/{WEIGHTS}"))

    def _files(self) -> Any:
        return url_to_fs(self.url)[0]

    def _path(self, *parts: str) -> str:
        return "/".join([url_to_fs(self.url)[1].rstrip("/"), *parts])


@contextmanager
def local_copies(places: Mapping[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """The places on this machine, those at a URL as copies in `folder`, which are removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)  # a killed step may have left it
    local = dict(places)
    try:
        for name, place in places.items():
            url, _, key = place.rpartition("/")
            if "://" in url:
                Remote(url).fetch(key, folder / name)
                local[name] = str(folder / name)
        yield local
    finally:
        shutil.rmtree(folder, ignore_errors=True)
