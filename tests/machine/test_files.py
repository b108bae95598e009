"""Errors about outputs and disks before anything is written."""

import shutil

import pytest

from shortstack.errors import OutputError
from shortstack.machine import files
from shortstack.machine.files import MARGIN_BYTES, check_disk, check_new, existing_folder


def test_an_output_is_new_and_its_folder_can_be_written(tmp_path):
    (tmp_path / "there").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("there", "dangling", "none/../there"):
        with pytest.raises(OutputError, match="it exists"):
            check_new(tmp_path / name)
    with pytest.raises(OutputError, match="a directory to write in, found none"):
        check_new(tmp_path / "none" / "out")
    check_new(tmp_path / "none" / "out", make_folders=True)
    with pytest.raises(OutputError, match="there, which cannot"):
        check_new(tmp_path / "there" / "out", make_folders=True)
    assert not (tmp_path / "none").exists()


def test_folders_and_names_are_synced_once_they_are_made(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    files.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    files.make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
    (tmp_path / "a" / "b" / "made").write_text("whole")
    files.rename_new(tmp_path / "a" / "b" / "made", tmp_path / "out")
    assert synced[2:] == [tmp_path, tmp_path / "a" / "b"], "the new name first: it never has neither"
    assert (tmp_path / "out").read_text() == "whole"
    (tmp_path / "taken" / "full").mkdir(parents=True)
    with pytest.raises(OutputError, match="does not exist yet"):
        files.rename_new(tmp_path / "a" / "b", tmp_path / "taken")
    with pytest.raises(FileNotFoundError):  # what the system says of anything else stays what it is
        files.rename_new(tmp_path / "gone", tmp_path / "new")


def test_a_disk_is_asked_where_the_output_will_be(tmp_path, monkeypatch):
    asked, usage = [], shutil.disk_usage(tmp_path)
    full = usage._replace(free=MARGIN_BYTES + 10)
    monkeypatch.setattr("shutil.disk_usage", lambda place: asked.append(place) or full)
    check_disk(tmp_path / "new" / "out", 10)
    with pytest.raises(OutputError, match=r"of free disk for a model\.gguf, dequantised, found .* free some"):
        check_disk(tmp_path, 11, what="a model.gguf, dequantised")
    assert asked == [tmp_path, tmp_path]
    assert existing_folder(tmp_path / "new" / "out") == tmp_path
