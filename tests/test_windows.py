"""The package works where there is neither fcntl nor resource, as on Windows."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shortstack.machine import files, memory

PACKAGE = Path(files.__file__).parents[1]
UNIX = {"fcntl", "grp", "pwd", "resource", "termios"}


def imported(node):
    """List the modules imported below a node, but for what stands under a question for the platform."""
    if isinstance(node, ast.If) and "platform" in ast.unparse(node.test):
        return set()
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.name for alias in node.names} | {getattr(node, "module", None)}
    return set().union(*map(imported, ast.iter_child_nodes(node)))


@pytest.mark.parametrize("path", PACKAGE.rglob("*.py"), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_imports_what_windows_has_not(path):
    assert not UNIX & imported(ast.parse(path.read_text(encoding="utf-8")))


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
