"""What a dry run prints of memory and disk."""

import shutil

from shortstack.cli.dry_run import lacking
from shortstack.machine.memory import Requirements


def test_missing_disk_and_gpu_memory_are_named(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    monkeypatch.setattr("shortstack.machine.memory.available_memory", {"cuda:1": 10**9, "cpu": 10**12}.get)
    memory, disk = lacking(Requirements(2 * 10**9, 11, device="cuda:1"))
    assert memory == "memory: 2.0 GB, of 1.0 GB"
    assert disk == "disk: 11 B, of 10 B free"
