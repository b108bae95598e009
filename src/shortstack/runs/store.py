"""The run store of a study: the results of its steps, in SQLite. One process writes it; any other may read along.

RUNS/study.yaml, RUNS/runs.sqlite, RUNS/artefacts/<key>/ (checkpoints and results), RUNS/logs/<the first twelve digits of the
key>.txt (what workers said); RUNS/partial/ is what workers are writing, and how far they are.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.errors import DataError
from shortstack.machine.files import digest, finite
from shortstack.runs.folder import Folder

WAIT = 30  # seconds for who else has the database
STEP_SEALED, TRIAL_SEALED = ("kind", "arguments", "inputs", "result"), ("number", "settings")
STEPS = (  # columns by name, so that SQLite itself refuses a store that lacks one
    "SELECT key, kind, arguments, inputs, state, result, error, started, seconds, host, command, versions, peak_rss_bytes "
    "FROM steps "
)
TRIALS = "SELECT id, number, settings, state FROM trials "
JSON_COLUMNS = ("arguments", "inputs", "result", "versions")
TABLES = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS steps(
  key TEXT PRIMARY KEY, kind TEXT, arguments TEXT, inputs TEXT, state TEXT CHECK(state IN ('running','done','failed')),
  result TEXT, error TEXT, started REAL, seconds REAL, host TEXT, command TEXT, versions TEXT, peak_rss_bytes INTEGER);
CREATE TABLE IF NOT EXISTS trials(id TEXT PRIMARY KEY, number INTEGER, settings TEXT, state TEXT);
CREATE TABLE IF NOT EXISTS trial_steps(trial TEXT, role TEXT, step TEXT, PRIMARY KEY(trial, role));
CREATE TABLE IF NOT EXISTS seals(row TEXT PRIMARY KEY, sha256 TEXT);
"""


@dataclass(frozen=True)
class Store:
    """The database, open to write or, read_only, to look."""

    connection: sqlite3.Connection

    @classmethod
    @contextmanager
    def open(cls, folder: Folder, *, read_only: bool = False) -> Iterator[Store]:
        """Open the run store of a folder; read_only: all that is read is of one moment."""
        if read_only and not folder.database.is_file():
            raise _not_there(folder)
        place = f"{folder.database.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        try:
            with closing(sqlite3.connect(place, uri=True, timeout=WAIT)) as connection:
                connection.row_factory, connection.text_factory = sqlite3.Row, _text
                store = cls(connection)
                if read_only:
                    connection.execute("BEGIN")
                else:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.executescript(TABLES)
                yield store
                if not read_only:
                    store.settle()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError) and not read_only:
                raise  # of a study's own work; names of a damaged store's columns are all that could be meant here
            raise DataError(
                error,
                expected="a run store that `shortstack study` wrote, on a disk that can be used",
                fix="name another folder, or free the disk and run the study again",
                where=folder.database,
            ) from error

    def settle(self) -> None:
        """Leave one file, which may be read where nothing can be written; not while somebody reads along."""
        self.connection.execute("PRAGMA busy_timeout=0")
        with suppress(sqlite3.OperationalError):  # somebody does
            self.connection.execute("PRAGMA journal_mode=DELETE")

    def note(self, **values: Any) -> None:
        """Keep values in `meta`, as JSON where they are no text."""
        rows = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in values.items()]
        with self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO meta VALUES(?, ?)", rows)

    def noted(self) -> dict[str, str]:
        return dict(self.connection.execute("SELECT key, value FROM meta").fetchall())

    def begin(self, key: str, kind: str, arguments: Any, inputs: Any, command: str) -> None:
        with self.connection:
            self.connection.execute(
                "INSERT OR REPLACE INTO steps(key, kind, arguments, inputs, command, state, started) VALUES(?,?,?,?,?,?,?)",
                (key, kind, _json(arguments), _json(inputs), command, "running", time.time()),
            )

    def end(self, key: str, state: str, outcome: Mapping[str, Any]) -> None:
        """Keep that a step is done or has failed. outcome: result or error, seconds, host, versions, peak_rss_bytes."""
        result, versions = outcome.get("result"), outcome.get("versions", {})
        values = (
            state,
            None if result is None else _json(result),
            *(outcome.get(name) for name in ("error", "seconds", "host")),
            _json(versions),
            outcome.get("peak_rss_bytes"),
            key,
        )
        with self.connection:
            self.connection.execute(
                "UPDATE steps SET state=?, result=?, error=?, seconds=?, host=?, versions=?, peak_rss_bytes=? WHERE key=?",
                values,
            )
            row = self.connection.execute(STEPS + "WHERE key = ?", (key,)).fetchone()
            self.connection.execute("INSERT OR REPLACE INTO seals VALUES(?, ?)", (key, _seal(row, STEP_SEALED)))

    def forget_running(self) -> None:
        """Remove the steps to be tried again: those that ran when the last process ended, and those that failed."""
        with self.connection:
            self.connection.execute("DELETE FROM steps WHERE state <> 'done'")

    def results(self) -> dict[str, dict[str, Any]]:
        """Read the result of each finished step, by its key."""
        return {row["key"]: row["result"] for row in self.steps() if row["state"] == "done"}

    def states(self) -> list[dict[str, Any]]:
        """List the trials' steps without their results, the oldest first.

        Those of changed inputs are no trial's any more.
        """
        rows = self.connection.execute(
            "SELECT key, kind, state, error, started, seconds FROM steps "
            "WHERE key IN (SELECT step FROM trial_steps) ORDER BY started"
        )
        return [dict(row) for row in rows]

    def steps(self) -> list[dict[str, Any]]:
        """Read every step, with the data of its JSON columns."""
        rows = self._unbroken(self.connection.execute(STEPS + "ORDER BY key"), "key", STEP_SEALED)
        return [{**dict(row), **{name: _object(row, name) for name in JSON_COLUMNS}} for row in rows]

    def _unbroken(self, rows: Iterable[sqlite3.Row], name: str, columns: Sequence[str]) -> Iterator[sqlite3.Row]:
        """Yield the rows, each found as it was kept; name: of the column that they are known by."""
        seals = dict(self.connection.execute("SELECT row, sha256 FROM seals").fetchall())
        for row in rows:
            if name == "key" and Path(row["key"]).name != row["key"]:
                expected, fix = "a key that is the name of a folder", "do not use this study's folder"
                raise DataError(repr(row["key"]), expected=expected, fix=fix, where="runs.sqlite")
            if seals.get(row[name], seal := _seal(row, columns)) != seal:
                raise DataError(
                    "one that something else has changed",
                    expected="the row that `shortstack study` wrote",
                    fix="restore it, or run the study again in another folder",
                    where=f"runs.sqlite, {row[name]}",
                )
            yield row

    def set_trial(self, trial: str, row: Mapping[str, Any], steps: Mapping[str, str]) -> None:
        """Keep a trial's number, settings and state, and these steps by role in place of those it had before."""
        with self.connection:
            self.connection.execute("DELETE FROM trial_steps WHERE trial = ?", (trial,))
            self.connection.execute(
                "INSERT OR REPLACE INTO trials VALUES(?, ?, ?, ?)",
                (trial, row["number"], _json(row["settings"]), row["state"]),
            )
            self.connection.executemany(
                "INSERT INTO trial_steps VALUES(?, ?, ?)",
                [(trial, role, key) for role, key in steps.items()],
            )
            kept = self.connection.execute(TRIALS + "WHERE id = ?", (trial,)).fetchone()
            self.connection.execute("INSERT OR REPLACE INTO seals VALUES(?, ?)", (trial, _seal(kept, TRIAL_SEALED)))

    def trials(self) -> list[dict[str, Any]]:
        """List the trials in order, with the data of their settings."""
        cursor = self.connection.execute(TRIALS + "ORDER BY number, id")
        rows = self._unbroken(cursor, "id", TRIAL_SEALED)
        return [{**dict(row), "settings": _object(row, "settings")} for row in rows]

    def trial_steps(self) -> dict[str, dict[str, str]]:
        """Read, for each trial, the key of its step in each role."""
        steps: dict[str, dict[str, str]] = {}
        for trial, role, step in self.connection.execute("SELECT trial, role, step FROM trial_steps"):
            steps.setdefault(trial, {})[role] = step
        return steps


def _seal(row: sqlite3.Row, columns: Sequence[str]) -> str:
    return digest([None if row[name] is None else str(row[name]) for name in columns])


def _text(stored: bytes) -> str:
    try:
        return stored.decode()
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(f"text that is not UTF-8: {error}") from error


def _json(data: Any) -> str:
    return json.dumps(finite(data), ensure_ascii=False)


def _not_there(folder: Folder) -> DataError:
    root = folder.root
    found = f"no {folder.database.name} in it" if root.is_dir() else "a file" if root.exists() else "no such folder"
    fix = "name the folder that `shortstack study FILE.yaml -o RUNS` writes"
    return DataError(found, expected="the folder of a study", fix=fix, where=root)


def _object(row: sqlite3.Row, column: str) -> dict[str, Any]:
    """Read the JSON object in a column; empty where there is none."""
    try:
        data = json.loads(row[column] or "{}")
    except ValueError as error:
        data = str(error)
    if not isinstance(data, dict):
        raise DataError(
            str(data)[:80],
            expected="a JSON object",
            fix="name another folder, or run the study again",
            where=f"runs.sqlite, {column}",
        )
    return data
