"""Files that are written whole or not at all, and checks before they are written."""

import os
import shutil
import subprocess
import sys

import pytest

from shortstack.errors import DiskFullError, InputError, OutputError
from shortstack.machine import files
from shortstack.machine.files import MARGIN_BYTES, atomic_write, check_disk, check_new, check_picture, partial_of


def test_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        (tmp_path / "none").read_text()
    assert (path.read_text(), os.listdir(tmp_path)) == ("before", ["a.json"])
    with atomic_write(path) as partial:
        partial.write_text("after")
    assert (path.read_text(), os.listdir(tmp_path)) == ("after", ["a.json"])


def test_rename_replaces_nothing(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "taken" / "full").mkdir(parents=True)
    with pytest.raises(OutputError):
        files.rename_new(tmp_path / "made", tmp_path / "taken")
    files.rename_new(tmp_path / "made", tmp_path / "out")
    assert (tmp_path / "out").is_dir()
    with pytest.raises(FileNotFoundError):
        files.rename_new(tmp_path / "gone", tmp_path / "new")


def test_partial_file_of_a_dead_process_is_removed(tmp_path):
    code = "import sys; from shortstack.machine.files import partial_of, Path; print(partial_of(Path(sys.argv[1])))"
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    left = tmp_path / subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    ours = partial_of(tmp_path / "out")
    for path in (left, ours, other := tmp_path / "out.partial-ffff-1-00000000"):
        path.write_text("half")
    partial_of(tmp_path / "out")
    assert not left.exists()
    assert ours.exists()
    assert other.exists(), "of another machine, whose processes are not known here"


def test_disk_is_checked_where_the_output_will_be(tmp_path, monkeypatch):
    places, usage = [], shutil.disk_usage(tmp_path)
    full = usage._replace(free=MARGIN_BYTES + 10)
    monkeypatch.setattr("shutil.disk_usage", lambda place: places.append(place) or full)
    check_disk(tmp_path / "new" / "out", 10)
    with pytest.raises(DiskFullError):
        check_disk(tmp_path, 11)
    assert places == [tmp_path, tmp_path]


def test_unusable_outputs_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_new(tmp_path / "new")
    check_new(tmp_path / "none" / "out", make_folders=True)
    for output in (tmp_path / "file", tmp_path / "none" / "out", tmp_path / "file" / "out"):
        with pytest.raises(OutputError):
            check_new(output)
    with pytest.raises(InputError):
        check_picture(tmp_path / "a.png")
