"""What a study left behind, read from its store: opened read-only, so that a running study is never in the way."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shortstack.errors import DataError, InputError

STORE = "runs.sqlite"
JSON_COLUMNS = ("arguments", "inputs", "result", "versions")


@dataclass(frozen=True)
class Step:
    """One call of a verb: what was asked, what came out, where and how long it ran."""

    key: str
    kind: str
    state: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    started: float | None = None
    seconds: float | None = None
    host: str | None = None
    command: str | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Trial:
    """One path through the grid, and the steps it took by role; `evaluate_base` and `profile_base` are the model's own."""

    id: str
    number: int
    settings: Mapping[str, Any]
    state: str
    steps: Mapping[str, Step]

    def result(self, *roles: str) -> Mapping[str, Any]:
        """The result of the first of these roles that is done; empty where none is."""
        step = self.step(*roles)
        return step.result if step else {}

    def step(self, *roles: str) -> Step | None:
        """The first of these roles' steps that is done."""
        return next(
            (self.steps[role] for role in roles if role in self.steps and self.steps[role].state == "done"), None
        )


@dataclass(frozen=True)
class Runs:
    """Everything in a store: trials in the order of the grid, steps by key."""

    name: str
    meta: Mapping[str, str]
    trials: tuple[Trial, ...]
    steps: Mapping[str, Step]

    @property
    def title(self) -> str:
        """As the study's file has it, else the folder's name."""
        return self.meta.get("title") or self.name


def read(folder: str | Path) -> Runs:
    """All trials and steps in RUNS, as of one moment.

    Raises:
        InputError: there is no store in the folder.
        DataError: it is no store of a study, or its rows are not what a study writes.
    """
    folder = Path(folder)
    with _opened(folder / STORE) as rows:
        meta = {row["key"]: row["value"] for row in rows("meta", "key")}
        steps = {row["key"]: _step(row) for row in rows("steps", "key")}
        roles: dict[str, dict[str, Step]] = {}
        for row in rows("trial_steps", "trial, role"):
            if row["step"] in steps:
                roles.setdefault(row["trial"], {})[row["role"]] = steps[row["step"]]
        trials = tuple(
            Trial(
                row["id"], row["number"], _object(row["settings"], "settings"), row["state"], roles.get(row["id"], {})
            )
            for row in rows("trials", "number, id")
        )
    return Runs(folder.resolve().name, meta, trials, steps)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A function that reads a table; every table it reads is of the same moment."""
    if not path.is_file():
        raise InputError(
            path.parent,
            expected="the folder of a study",
            found=f"no {STORE} in it" if path.parent.is_dir() else "no such folder",
            fix="name the folder that `shortstack study FILE.yaml -o RUNS` wrote",
        )
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=30)) as store:
            store.row_factory = sqlite3.Row
            store.execute("BEGIN")
            yield lambda table, order: store.execute(f"SELECT * FROM {table} ORDER BY {order}")  # noqa: S608  our names
    except (sqlite3.DatabaseError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            path,
            expected="a store that `shortstack study` wrote",
            found=str(error),
            fix="name another folder, or run the study again",
        ) from error


def _step(row: sqlite3.Row) -> Step:
    found: dict[str, Any] = {key: row[key] for key in Step.__dataclass_fields__}
    return Step(**found | {column: _object(found[column], column) for column in JSON_COLUMNS})


def _object(text: str | None, column: str) -> dict[str, Any]:
    """The JSON object in a column; empty where there is none."""
    data = json.loads(text) if text else {}
    if not isinstance(data, dict):
        raise TypeError(f"{column} is {type(data).__name__}, not an object")
    return data
