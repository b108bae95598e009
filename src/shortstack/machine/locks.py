"""One process at a time makes an output."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from shortstack.errors import OutputError


class OutputLock:
    """Keeps other processes from making the same output; its holder may enter it again.

    The lock ends with the process. Its file, `.<output>.lock` beside the output if no other place is named, is removed
    with the lock, or after a kill by the next process that makes the output. meanwhile: advice to the refused process.
    """

    def __init__(self, output: Path, place: Path | None = None, *, meanwhile: str = "wait for it") -> None:
        self.output = output
        self.place = place or output.with_name(f".{output.name}.lock")
        self.meanwhile = f"{meanwhile}, or name another output"
        self._lock = FileLock(self.place)

    def __enter__(self) -> OutputLock:
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(f"another process is writing {self.output}; {self.meanwhile}") from error
        except OSError as error:
            raise OutputError(f"{self.output} cannot be written: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.lock_counter == 1:
            # Removed while it is held: filelock does not take a lock on a file that has gone.
            with suppress(PermissionError):  # Windows keeps files that are open
                self.place.unlink(missing_ok=True)
        self._lock.release()
