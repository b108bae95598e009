"""watch reads a run store while it is written, and says what it holds; how far a step is, kept at most once a second."""

import json

import pytest

from command import invoke
from shortstack.machine.progress import silent
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.study.progress import (
    KindProgress,
    RunningStep,
    StepProgress,
    keeping,
    read_progress,
    seconds_to_go,
    study_progress,
)


@pytest.fixture
def runs(tmp_path):
    """Of five healings two are done, one runs and one has failed."""
    folder = Folder(tmp_path / "runs")
    folder.make()
    with Store.open(folder) as store:
        store.note(title="five healings", workers=2, expected={"heal": 5, "score": 1})
        for number, state in enumerate(("done", "done", "running", "failed")):
            store.begin(f"key{number}", "heal", {}, {}, "shortstack heal")
            if state != "running":
                result = {"result": {"x": 1}} if state == "done" else {"error": "Traceback\n  ...\nValueError: no"}
                store.end(f"key{number}", state, {**result, "seconds": 10.0 + number})
        store.begin("score", "score", {}, {}, "shortstack score")
        store.end("score", "done", {"result": {}, "seconds": 1.0})
        ended, going, failed = {"score": "score", "heal": "key0"}, {"prune": "key1", "heal": "key2"}, {"heal": "key3"}
        for number, (state, steps) in enumerate({"done": ended, "running": going, "failed": failed}.items()):
            store.set_trial(f"trial{number}", {"number": number, "settings": {}, "state": state}, steps)
        yield folder.root, store


def test_a_look_counts_what_is_done_running_failed_and_to_come(runs):
    found = study_progress(runs[0])
    assert found.kinds["heal"] == KindProgress(2, 1, 1, 5, 10.5)
    assert found.kinds["score"] == KindProgress(1, 0, 0, 1, 1.0)
    assert found.trials == {"done": 1, "running": 1, "failed": 1, "waiting": 0}
    assert found.failures == ["heal key3: ValueError: no"]
    assert [each.kind for each in found.running] == ["heal"]
    assert not found.finished


def test_it_sees_what_is_written_meanwhile(runs):
    root, store = runs
    store.end("key2", "done", {"result": {}, "seconds": 13.5})
    store.note(finished=1.0)
    found = study_progress(root)
    assert found.kinds["heal"] == KindProgress(3, 0, 1, 5, 11.5)
    assert found.finished


def test_the_time_to_go_is_that_of_the_steps_left_by_kind():
    """Three healings of 60 s, one of them 20 s old, and a score of 6 s, on two workers."""
    kinds = {"heal": KindProgress(2, 1, 0, 5, 60.0), "score": KindProgress(1, 0, 0, 2, 6.0)}
    running = [RunningStep("heal", 20.0)]
    assert seconds_to_go(kinds, running, 2) == (3 * 60 + 6 - 20) / 2
    assert seconds_to_go({**kinds, "evaluate": KindProgress(0, 0, 0, 1, None)}, running, 2) is None
    assert seconds_to_go({"heal": KindProgress(4, 0, 1, 5, 60.0)}, [], 1) == 0


def test_without_a_terminal_one_frame_is_printed(runs):
    shown = invoke("watch", str(runs[0]))
    assert shown.exit_code == 0
    assert "five healings" in shown.stdout
    assert "failed: heal key3: ValueError: no" in shown.stdout
    assert " left\n" in shown.stdout
    assert "steps: 3 of at most 6 done" in shown.stdout


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
