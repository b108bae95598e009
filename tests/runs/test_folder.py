"""The lock of a study's folder, and its store, read without a trace."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from shortstack.errors import DataError, OutputError
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.store import TABLES

HOLD = """
import sys, time
from pathlib import Path
from shortstack.runs.folder import Folder
with Folder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
    folder = Folder(tmp_path / "runs")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder.root)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=r"no other process is making.*watch it"), folder.held():
            pass
        process.kill()
    with folder.held():
        pass


def test_reading_leaves_nothing_beside_the_store_and_takes_no_room_on_its_disk(tmp_path):
    """Whether a study has ended, was killed with its log beside the database, or with none."""
    folder = Folder(tmp_path / "runs")
    with folder.held(), Store.open(folder) as store:
        store.note(title="kept")
        killed = shutil.copytree(folder.root, tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm", "lock"))
    assert (killed / "runs.sqlite-wal").stat().st_size > 0
    without = shutil.copytree(killed, tmp_path / "without", ignore=shutil.ignore_patterns("*-wal"))
    with closing(sqlite3.connect(without / "runs.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(f"{TABLES}; INSERT OR REPLACE INTO meta VALUES('title', 'kept')")
    for place in (folder.root, killed, without):
        before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
        with Store.open(Folder(place), read_only=True) as store:
            assert store.noted()["title"] == "kept"
        assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("key", ["../elsewhere", "/elsewhere"])
def test_a_store_s_key_never_leads_out_of_the_folder_of_steps(key, tmp_path):
    """A received study is gone on with: weights of steps that nothing needs are removed, by their keys."""
    folder = Folder(tmp_path)
    with Store.open(folder) as store:
        store.begin(key, "prune", {}, {}, "")
        store.end(key, "done", {"result": {}, "seconds": 1.0, "host": "here"})
    with Store.open(folder) as store, pytest.raises(DataError, match="a key that is the name of a folder"):
        store.results()
