"""An error of a library about a full disk is an OSError; what they say of anything else stays what it is."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shortstack.machine.files import disk_errors
from zoo import tokenizer

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no disk that is always full")


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
