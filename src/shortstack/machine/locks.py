"""One process at a time makes an output."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from shortstack.errors import OutputError
from shortstack.machine.files import make_folder, missing_parents, remove_empty


class OutputLock:
    """Keeps other processes from making the same output; who holds it may enter it again.

    The lock goes with the process, however that ends. Its file, `.<output>.lock` beside the output if no other place is
    named, goes with the lock, or where a process was killed with the next one that makes the output. meanwhile: what
    whoever is refused can do.
    """

    def __init__(self, output: Path, place: Path | None = None, *, meanwhile: str = "wait for it") -> None:
        self.output = output
        self.place = place or output.with_name(f".{output.name}.lock")
        self.meanwhile = f"{meanwhile}, or name another output"
        self._lock = FileLock(self.place)
        self._made = missing_parents(self.place)

    def __enter__(self) -> OutputLock:
        try:
            make_folder(self.place.parent)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                "another process is writing it",
                expected="an output that no other process is making",
                fix=self.meanwhile,
                where=self.output,
            ) from error
        except OSError as error:
            raise OutputError(
                error.strerror or str(error),
                expected="an output that can be written",
                fix="name another output",
                where=self.output,
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.lock_counter == 1:
            # Removed while it is held: filelock does not take a lock on a file that has gone.
            with suppress(PermissionError):  # Windows keeps files that are open
                self.place.unlink(missing_ok=True)
        self._lock.release()
        remove_empty(self._made)  # an output that was refused leaves no folders that were made for it
