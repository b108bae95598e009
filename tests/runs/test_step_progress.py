"""How far a step is: told on at once, kept at most once a second, and read by others."""

import json

import pytest

from shortstack.machine.progress import silent
from shortstack.runs.step_progress import StepProgress, keeping, read_progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_what_is_told_is_told_on_and_kept_once_a_second(tmp_path, clock):
    told, path = [], tmp_path / "step.json"
    keep = keeping(path, lambda *said, note="": told.append((*said, note)))
    for second, done in ((0.0, 0), (0.4, 10), (0.9, 20), (1.2, 30), (1.3, 40)):
        clock[0] = 100 + second
        keep("healing", done, 120, note="500 tokens/s")
        kept = read_progress(path)
        assert kept
        assert kept.done == (0 if second < 1 else 30)
    assert told == [("healing", done, 120, "500 tokens/s") for done in (0, 10, 20, 30, 40)]
    assert kept == StepProgress("healing", 30, 120, "500 tokens/s")
    assert str(kept) == "healing 30 of 120, 500 tokens/s"


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"stage": 1}', json.dumps({"stage": "a", "done": "much"})])
def test_what_is_no_progress_tells_nothing(content, tmp_path):
    path = tmp_path / "step.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert read_progress(path) is None


def test_that_of_a_step_that_was_killed_is_gone(tmp_path):
    path = tmp_path / "step.json"
    path.write_text("{}", encoding="utf-8")
    keeping(path, silent)
    assert not path.exists()
