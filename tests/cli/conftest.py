"""The command that the tests of this room run."""

import pytest

from command import Command


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path, monkeypatch, capfd)
