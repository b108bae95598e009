"""Syncs and their order, disks without room, and errors of libraries about a full disk, which become an OSError."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shortstack.errors import OutputError
from shortstack.machine import files
from shortstack.machine.files import MARGIN_BYTES, check_disk, disk_errors, existing_folder
from zoo import tokenizer


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


FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="this system has no disk that is always full")


@full_disk
@pytest.mark.parametrize(
    "write",
    [
        lambda: tokenizer().backend_tokenizer.save(str(FULL)),
        lambda: FULL.write_bytes(b"x"),
    ],
    ids=["tokenizers", "python"],
)
def test_a_full_disk_is_said_as_one(write):
    with pytest.raises(OSError, match="No space left on device") as raised, disk_errors(FULL):
        write()
    assert raised.value.errno == errno.ENOSPC


@full_disk
@pytest.mark.parametrize(("free", "number"), [(1 << 20, errno.ENOSPC), (1 << 30, errno.EIO)])
def test_of_torch_which_does_not_say_why_the_room_decides(free, number, monkeypatch):
    usage = type("usage", (), {"free": free})
    monkeypatch.setattr("shortstack.machine.files.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(OSError, match=os.strerror(number)), disk_errors(FULL):
        torch.save({"a": torch.zeros(100_000)}, FULL)


def test_a_folder_that_is_not_there_is_said_by_safetensors_too(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, disk_errors(tmp_path / "out"):
        save_file({"a": torch.zeros(2)}, tmp_path / "none" / "out")
    assert raised.value.filename == str(tmp_path / "out")


def test_other_errors_stay_what_they_are(tmp_path):
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), disk_errors(tmp_path):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    with pytest.raises(Exception, match=r"(?i)header"), disk_errors(tmp_path), safe_open(tmp_path / "broken", "pt"):
        pytest.fail("it was opened")
    with pytest.raises(KeyboardInterrupt), disk_errors(tmp_path):
        raise KeyboardInterrupt
