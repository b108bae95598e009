"""The command line in this process: what it says, what it reads, and the options that its verbs have."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from shortstack.cli.verbs import app, run


@dataclass(frozen=True)
class Ended:
    exit_code: int
    stdout: str
    stderr: str
    exception: Exception | None


def invoke(*words: object) -> Ended:
    """What becomes of `shortstack` and these words."""
    code, raised = 0, None
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            run([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        except KeyboardInterrupt:
            code = 130
        except Exception as error:  # noqa: BLE001  whoever asks looks at it
            code, raised = 1, error
    return Ended(code, out.getvalue(), err.getvalue(), raised)


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
