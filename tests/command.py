"""The command line in this process: what it says and leaves, what it reads, and the options that its verbs have."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shortstack.cli import main
from shortstack.cli.app import run
from shortstack.cli.parsing import app


@dataclass(frozen=True)
class Ended:
    exit_code: int
    stdout: str
    stderr: str
    exception: Exception | None = None


def invoke(*words: object) -> Ended:
    """Run `shortstack` with these words."""
    code, raised = 0, None
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            run([str(word) for word in words])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except KeyboardInterrupt:
            code = 130
        except Exception as error:  # noqa: BLE001  whoever asks looks at it
            code, raised = 1, error
    return Ended(code, out.getvalue(), err.getvalue(), raised)


def ended(*words: object) -> Ended:
    """The same as a process of its own would, its error told on stderr."""
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", ["shortstack", *map(str, words)])
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def read(*words: str) -> Mapping[str, Any]:
    """The arguments of the verb's function as these words give them; raises what cyclopts does."""
    _, bound, _ = app().parse_args(words)
    return bound.arguments


def options(verb: str) -> list[Any]:
    """Every option of a verb, as cyclopts knows it."""
    return [each for each in app()[verb].assemble_argument_collection() if each.parse and each.names[0].startswith("-")]


def names(verb: str) -> set[str]:
    """How the options of a verb can be spelled."""
    return {name for each in options(verb) for name in each.names}


MESSAGE = re.compile(r"Error: .+\n")


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder and what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


class Command:
    """A command line, run in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capfd = folder, monkeypatch, capfd

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """The exit code, and what is on stdout and stderr."""
        self.monkeypatch.setattr(sys, "argv", ["shortstack", *map(str, arguments)])
        self.capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return (code, *self.capfd.readouterr())

    def said(self, *arguments: object) -> str:
        """Return what a command that must not fail prints."""
        code, out, err = self(*arguments)
        assert code == 0, err
        return out

    def refused(self, *arguments: object) -> str:
        """The one message of a command that must be refused."""
        before = snapshot(self.folder)
        code, out, err = self(*arguments, "-q")
        assert code == 2, err
        assert out == ""
        assert MESSAGE.fullmatch(err), err
        assert snapshot(self.folder) == before
        return err
