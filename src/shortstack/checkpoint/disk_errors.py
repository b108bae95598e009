"""What libraries written in other languages say of a disk that has no room, or fails, as the OSError it is."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shortstack.machine.files import FULL, existing_folder

RUST = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers
TORCH = re.compile(r"inline_container|iostream|PytorchStreamWriter")
FEW_BYTES = 16 << 20  # with so few left a disk is full
KNOWN = (*FULL, errno.EROFS, errno.EACCES)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """While it lasts, what safetensors, tokenizers and torch raise of a disk is an OSError that names the place."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # No class says what it is: each library has its own, and that of tokenizers is Exception itself.
        number = _number(str(error), place)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(place)) from error


def _number(said: str, place: Path) -> int | None:
    """The number of the system's error that a message is about; None if it is about something else.

    >>> _number("I/O error: No space left on device (os error 28)", Path("out"))
    28
    """
    if found := RUST.search(said):
        return int(found[1])
    if not TORCH.search(said):
        return None
    # torch says that writing failed and seldom why.
    unknown = errno.ENOSPC if shutil.disk_usage(existing_folder(place)).free < FEW_BYTES else errno.EIO
    return next((number for number in KNOWN if os.strerror(number) in said), unknown)
