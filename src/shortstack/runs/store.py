"""The run store of a study: its trials, its steps and their results, in SQLite. One process writes it; any may read along.

RUNS/study.yaml, RUNS/runs.sqlite, RUNS/artefacts/<key>/ (checkpoints and results), RUNS/logs/<first twelve digits of the
key>.txt (what workers said); RUNS/partial/ is what workers are writing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from shortstack.errors import DataError
from shortstack.machine.files import finite, to_jsonable
from shortstack.runs.folder import Folder

WAIT = 30  # seconds for another process to release the database
JSON_COLUMNS = {"arguments", "inputs", "result", "versions", "settings", "steps"}
TABLES = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS steps(
  key TEXT PRIMARY KEY, kind TEXT, arguments TEXT, inputs TEXT, state TEXT CHECK(state IN ('running','done','failed')),
  result TEXT, error TEXT, started REAL, seconds REAL, host TEXT, versions TEXT, peak_rss_bytes INTEGER);
CREATE TABLE IF NOT EXISTS trials(id TEXT PRIMARY KEY, number INTEGER, settings TEXT, state TEXT, steps TEXT);
"""


@dataclass(frozen=True)
class Store:
    """The database, opened to write or only to read."""

    connection: sqlite3.Connection

    @classmethod
    @contextmanager
    def open(cls, folder: Folder, *, read_only: bool = False) -> Iterator[Store]:
        """Open the run store of a folder; read_only: all reads see one moment.

        Raises:
            DataError: there is no run store, or SQLite cannot read or write it.
        """
        if read_only and not folder.database.is_file():
            raise DataError(f"{folder.root} is not the folder of a study; name the -o of `shortstack study`")
        uri = f"{folder.database.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=WAIT)) as connection:
                connection.row_factory = sqlite3.Row
                connection.executescript("BEGIN" if read_only else TABLES)
                yield cls(connection)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{folder.database}: {error}; free disk space, or name another folder") from error

    def note(self, **values: Any) -> None:
        """Keep values by name."""
        with self.connection:
            rows = [(name, json.dumps(value)) for name, value in values.items()]
            self.connection.executemany("INSERT OR REPLACE INTO meta VALUES(?, ?)", rows)

    def noted(self) -> dict[str, Any]:
        rows = self.connection.execute("SELECT key, value FROM meta")
        return {name: _parsed(value) for name, value in rows}

    def begin(self, key: str, kind: str, arguments: Any, inputs: Any) -> None:
        """Record that a step runs."""
        row = {"key": key, "kind": kind, "arguments": arguments, "inputs": inputs}
        self._put("steps", {**row, "state": "running", "started": time.time()})

    def end(self, key: str, state: str, outcome: Mapping[str, Any]) -> None:
        """Record that a step is done or has failed. outcome: result or error, seconds, host, versions, peak_rss_bytes."""
        values = {"state": state, **_columns(outcome)}
        assignments = ", ".join(f"{name} = :{name}" for name in values)
        with self.connection:
            self.connection.execute(f"UPDATE steps SET {assignments} WHERE key = :key", {**values, "key": key})  # noqa: S608  our names

    def restart(self) -> None:
        """Remove all trials, and steps that were running or failed, so that they run again."""
        with self.connection:
            self.connection.execute("DELETE FROM trials")
            self.connection.execute("DELETE FROM steps WHERE state <> 'done'")

    def results(self) -> dict[str, dict[str, Any]]:
        """Read the result of each finished step, by its key."""
        rows = self.connection.execute("SELECT key, result FROM steps WHERE state = 'done'")
        return {key: _parsed(result) for key, result in rows}

    def steps(self) -> list[dict[str, Any]]:
        """Read every step, the oldest first."""
        return self._read("SELECT * FROM steps ORDER BY started, key")

    def put_trial(self, trial: str, *, number: int, settings: Any, state: str, steps: Mapping[str, str]) -> None:
        """Keep a trial. steps: the keys of its steps by role."""
        self._put("trials", {"id": trial, "number": number, "settings": settings, "state": state, "steps": steps})

    def trials(self) -> list[dict[str, Any]]:
        """Read every trial, in the order of the study."""
        return self._read("SELECT * FROM trials ORDER BY number")

    def _put(self, table: str, row: Mapping[str, Any]) -> None:
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        with self.connection:
            self.connection.execute(f"INSERT OR REPLACE INTO {table}({names}) VALUES({values})", _columns(row))

    def _read(self, query: str) -> list[dict[str, Any]]:
        rows = [dict(row) for row in self.connection.execute(query)]
        return [{name: _value(name, value) for name, value in row.items()} for row in rows]


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: json.dumps(finite(to_jsonable(row[name])), ensure_ascii=False) for name in row.keys() & JSON_COLUMNS}
    return {**row, **texts}


def _value(name: str, value: Any) -> Any:
    return _parsed(value or "{}") if name in JSON_COLUMNS else value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise sqlite3.DatabaseError(f"{text[:40]!r} is not JSON") from error
