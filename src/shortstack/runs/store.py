"""The run store of a study: what each step gave, in SQLite. One process writes it; any other may read along.

RUNS/study.yaml, RUNS/runs.sqlite, RUNS/artefacts/<key>/ (checkpoints and results), RUNS/logs/<key>.txt (what workers said);
RUNS/partial/ is what workers are writing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shortstack.errors import DataError, InputError, parameter
from shortstack.machine.files import finite
from shortstack.runs.artefacts import Artefacts, Remote, Shared

VERSION = "1"
WAIT = 30  # seconds for who else has the database
JSON_COLUMNS = ("arguments", "inputs", "result", "versions")
TABLES = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS steps(
  key TEXT PRIMARY KEY, kind TEXT, arguments TEXT, inputs TEXT, state TEXT CHECK(state IN ('running','done','failed')),
  result TEXT, error TEXT, started REAL, seconds REAL, host TEXT, command TEXT, versions TEXT, peak_rss_bytes INTEGER);
CREATE TABLE IF NOT EXISTS trials(id TEXT PRIMARY KEY, number INTEGER, settings TEXT, state TEXT);
CREATE TABLE IF NOT EXISTS trial_steps(trial TEXT, role TEXT, step TEXT, PRIMARY KEY(trial, role));
"""


@dataclass(frozen=True)
class Folder:
    """Where the parts of a run store lie. url: of the artefacts, where they are not beside it."""

    root: Path
    url: str | None = None

    @property
    def database(self) -> Path:
        return self.root / "runs.sqlite"

    @property
    def study(self) -> Path:
        return self.root / "study.yaml"

    @property
    def artefacts(self) -> Artefacts:
        return Remote(self.url) if self.url else Shared(self.root / "artefacts")

    def artefact(self, key: str) -> Path:
        return self.root / "artefacts" / key

    def partial(self, key: str) -> Path:
        return self.root / "partial" / key

    def log(self, key: str) -> Path:
        return self.root / "logs" / f"{key}.txt"

    def make(self) -> None:
        for name in ("artefacts", "partial", "logs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody else write here meanwhile; the lock goes with the process, however it ends.

        Raises:
            InputError: somebody else does, or there is a file of that name.
        """
        if self.root.exists() and not self.root.is_dir():
            fix = f"name another {parameter('output')}"
            raise InputError(self.root, expected="a folder for a study", found="a file", fix=fix)
        self.make()
        try:
            lock = FileLock(self.root / "lock").acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                self.root,
                expected="no other study running in this folder",
                found="one",
                fix=f"wait for it, or watch it: shortstack watch {self.root}",
            ) from error
        with lock:
            yield


@dataclass(frozen=True)
class Store:
    """The database, open to write or, read_only, to look."""

    connection: sqlite3.Connection

    @classmethod
    @contextmanager
    def open(cls, folder: Folder, *, read_only: bool = False) -> Iterator[Store]:
        """Open the run store of a folder; read_only: all that is read is of one moment.

        Raises:
            DataError: there is none, it is of another version, or its rows are not what a study writes.
        """
        if read_only:
            _check_there(folder)
        path, mode = folder.database.absolute(), "ro" if read_only else "rwc"
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=WAIT)) as connection:
                connection.row_factory = sqlite3.Row
                store = cls(connection)
                if read_only:
                    connection.execute("BEGIN")
                else:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.executescript(TABLES)
                    store.note(version=store.noted().get("version", VERSION))
                store.check_version(folder)
                yield store
        except sqlite3.DatabaseError as error:
            raise DataError(
                folder.database,
                expected="a run store that `shortstack study` wrote, on a disk that can be used",
                found=str(error),
                fix="name another folder, or free the disk and run the study again",
            ) from error

    def check_version(self, folder: Folder) -> None:
        """Refuse a store of another version.

        Raises:
            DataError: it is.
        """
        found = self.noted().get("version")
        if found != VERSION:
            raise DataError(
                folder.database,
                expected=f"a run store of version {VERSION}",
                found=f"version {found}" if found else "none",
                fix="name another folder, or use the shortstack that wrote it",
            )

    def note(self, **values: Any) -> None:
        """Keep values in `meta`, as JSON where they are no text."""
        rows = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in values.items()]
        with self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO meta VALUES(?, ?)", rows)

    def noted(self) -> dict[str, str]:
        return dict(self.connection.execute("SELECT key, value FROM meta").fetchall())

    def begin(self, key: str, row: Mapping[str, Any]) -> None:
        """A step runs. row: kind, arguments, inputs, command."""
        with self.connection:
            self.connection.execute(
                "INSERT OR REPLACE INTO steps(key, kind, arguments, inputs, command, state, started) VALUES(?,?,?,?,?,?,?)",
                (
                    key,
                    row["kind"],
                    _json(row["arguments"]),
                    _json(row["inputs"]),
                    row["command"],
                    "running",
                    time.time(),
                ),
            )

    def end(self, key: str, state: str, found: Mapping[str, Any]) -> None:
        """A step is done or has failed. found: result or error, seconds, host, versions, peak_rss_bytes."""
        values = (
            state,
            _json(found["result"]) if "result" in found else None,
            found.get("error"),
            found.get("seconds"),
            found.get("host"),
            _json(found.get("versions", {})),
            found.get("peak_rss_bytes"),
            key,
        )
        with self.connection:
            self.connection.execute(
                "UPDATE steps SET state=?, result=?, error=?, seconds=?, host=?, versions=?, peak_rss_bytes=? WHERE key=?",
                values,
            )

    def forget_running(self) -> None:
        """What ran when the last process ended is unfinished, and what failed is tried again."""
        with self.connection:
            self.connection.execute("DELETE FROM steps WHERE state <> 'done'")

    def results(self) -> dict[str, dict[str, Any]]:
        """What each finished step gave, by its key."""
        rows = self.connection.execute("SELECT key, result FROM steps WHERE state = 'done'")
        return {key: json.loads(result) for key, result in rows}

    def seconds(self) -> dict[str, list[float]]:
        """How long the finished steps of each kind took."""
        found: dict[str, list[float]] = {}
        for kind, seconds in self.connection.execute("SELECT kind, seconds FROM steps WHERE state = 'done'"):
            found.setdefault(kind, []).append(seconds)
        return found

    def counts(self) -> dict[str, dict[str, int]]:
        """How many steps of each kind are in each state."""
        found: dict[str, dict[str, int]] = {}
        rows = self.connection.execute("SELECT kind, state, count(*) FROM steps GROUP BY kind, state")
        for kind, state, count in rows:
            found.setdefault(kind, {})[state] = count
        return found

    def running(self) -> list[dict[str, Any]]:
        """The steps that run, the oldest first."""
        rows = self.connection.execute("SELECT * FROM steps WHERE state = 'running' ORDER BY started")
        return [dict(row) for row in rows]

    def failures(self) -> list[dict[str, Any]]:
        """The steps that failed, and their tracebacks."""
        rows = self.connection.execute("SELECT * FROM steps WHERE state = 'failed' ORDER BY started")
        return [dict(row) for row in rows]

    def steps(self) -> list[dict[str, Any]]:
        """Every step, what is JSON in it as data.

        Raises:
            DataError: it is no JSON object.
        """
        rows = self.connection.execute("SELECT * FROM steps ORDER BY key")
        return [{**dict(row), **{name: _object(row, name) for name in JSON_COLUMNS}} for row in rows]

    def set_trial(self, trial: str, row: Mapping[str, Any], steps: Mapping[str, str]) -> None:
        """A trial's number, settings and state, and its steps by role."""
        with self.connection:
            self.connection.execute(
                "INSERT OR REPLACE INTO trials VALUES(?, ?, ?, ?)",
                (trial, row["number"], _json(row["settings"]), row["state"]),
            )
            self.connection.executemany(
                "INSERT OR REPLACE INTO trial_steps VALUES(?, ?, ?)",
                [(trial, role, key) for role, key in steps.items()],
            )

    def trials(self) -> list[dict[str, Any]]:
        """The trials in order, settings as data."""
        rows = self.connection.execute("SELECT * FROM trials ORDER BY number, id")
        return [{**dict(row), "settings": _object(row, "settings")} for row in rows]

    def trial_steps(self) -> dict[str, dict[str, str]]:
        """For each trial, the key of its step in each role."""
        found: dict[str, dict[str, str]] = {}
        for trial, role, step in self.connection.execute("SELECT trial, role, step FROM trial_steps"):
            found.setdefault(trial, {})[role] = step
        return found


def _json(data: Any) -> str:
    return json.dumps(finite(data), ensure_ascii=False)


def _check_there(folder: Folder) -> None:
    """Refuse a folder without a run store.

    Raises:
        DataError: that it is.
    """
    root, name = folder.root, folder.database.name
    if not folder.database.is_file():
        raise DataError(
            root,
            expected="the folder of a study",
            found=f"no {name} in it" if root.is_dir() else "a file" if root.exists() else "no such folder",
            fix="name the folder that `shortstack study FILE.yaml -o RUNS` wrote",
        )


def _object(row: sqlite3.Row, column: str) -> dict[str, Any]:
    """The JSON object in a column; empty where there is none.

    Raises:
        DataError: it is something else.
    """
    try:
        data = json.loads(row[column] or "{}")
    except ValueError as error:
        data = str(error)
    if not isinstance(data, dict):
        raise DataError(
            f"runs.sqlite, {column}",
            expected="a JSON object",
            found=str(data)[:80],
            fix="name another folder, or run the study again",
        )
    return data
