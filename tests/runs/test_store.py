"""The lock of a study's folder."""

import subprocess
import sys

import pytest

from shortstack.errors import OutputError
from shortstack.runs.folder import Folder

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
