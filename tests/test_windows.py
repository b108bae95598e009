"""The package works where there is neither fcntl nor resource, as on Windows."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shortstack.machine import files, memory

IMPORT_TWICE = """
import importlib.util, pkgutil, sys
import shortstack

sys.path.insert(0, sys.argv[1])
from extras import NEEDED

OTHERS = ["shortstack.__main__"]  # runs the program
OTHERS += [name for name, extra in NEEDED.items() if importlib.util.find_spec(extra) is None]

def import_all():
    names = [module.name for module in pkgutil.walk_packages(shortstack.__path__, "shortstack.")]
    return [importlib.import_module(name) for name in names if name not in OTHERS]

import_all()  # with this system's own forms of other packages
for name in [name for name in sys.modules if name.partition(".")[0] == "shortstack"]:
    del sys.modules[name]
sys.modules["fcntl"] = sys.modules["resource"] = None
sys.platform = "win32"
import shortstack
print(len(import_all()))
"""


def test_every_module_is_imported():
    command = [sys.executable, "-c", IMPORT_TWICE, str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 100


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")


def test_memory_is_what_psutil_says(windows, monkeypatch):
    held = SimpleNamespace(rss=5, vms=7, peak_wset=1234)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: held))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    monkeypatch.delattr(memory, "resource")
    monkeypatch.setattr(memory, "_control_groups", lambda: ())
    memory.forget_peak_rss()
    assert memory.peak_rss() == 1234
    assert memory.available_memory("cpu") == 10**6


def test_files_reach_the_disk_and_folders_are_left_alone(windows, monkeypatch, tmp_path):
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    files.sync(tmp_path)
    assert not synced
    files.save_json(tmp_path / "there.json", {})  # the file is synced, its folder is not
    assert len(synced) == 1
