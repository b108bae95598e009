"""What a dry run prints of memory and disk."""

import json
import shutil
from pathlib import Path

from shortstack.cli.dry_run import show_dry_run
from shortstack.cli.options import OutputOptions
from shortstack.machine.memory import Memory


def test_missing_disk_and_gpu_memory_are_named(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    monkeypatch.setattr("shortstack.machine.memory.available_memory", {"cuda:1": 10**9, "cpu": 10**12}.get)
    for memory, disk, lacking in (
        (Memory(2 * 10**9, device="cuda:1"), 11, ["memory", "disk"]),
        (Memory(2 * 10**9), 10, []),
    ):
        show_dry_run([("steps", "9")], memory, disk, OutputOptions(json=True), output=Path("new"), data={"steps": 9})
        found = json.loads(capsys.readouterr().out)
        assert (found["steps"], found["lacking"], found["disk_free_bytes"]) == (9, lacking, 10)
        show_dry_run([("steps", "9")], memory, disk, OutputOptions(), output=Path("new"), data={})
        out, err = capsys.readouterr()
        assert ("does not fit" in out, "Next:" in err) == (bool(lacking), not lacking)
