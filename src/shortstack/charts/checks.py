"""What is checked of a picture before there is one; nothing that draws is imported for it."""

from __future__ import annotations

from pathlib import Path

from shortstack.errors import InputError
from shortstack.machine.files import check_new


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be written, before minutes of work for it."""
    if path.suffix.lower() != ".svg":
        fix = "end it in .svg; rsvg-convert or a browser makes others of it"
        raise InputError(repr(path.name), expected="a name ending in .svg", fix=fix, where=path)
    check_new(path)
