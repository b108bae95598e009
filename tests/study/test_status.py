"""study --status: what a study's folder says of it while it runs, when it was stopped, and at its end."""

import json

import pytest

from command import invoke
from shortstack.errors import DataError
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.study import study_status
from studies import SHORT, inline, write_study


@pytest.fixture
def folder(tmp_path):
    """Of four healings two are done, one runs and one has failed; another is of no trial any more."""
    folder = Folder(tmp_path / "runs")
    with folder.held(), Store.open(folder) as store:
        store.note(title="healings", steps=6, finished=False)
        for number, state in enumerate(("done", "done", "running", "failed", "done")):
            store.begin(f"key{number}", "heal", {}, {})
            if state != "running":
                store.end(
                    f"key{number}", state, {"error": "Traceback\n  ...\nValueError: no"} if state == "failed" else {}
                )
        for number, state in enumerate(("done", "done", "running", "failed", "waiting")):
            steps = {"heal": f"key{number}"} if state != "waiting" else {}
            store.put_trial(f"trial{number}", number=number, settings={}, state=state, steps=steps)
        folder.log("key2").write_text("healing: 10%\nhealing: 40%, 500 tokens/s\n")
    return folder


def test_a_running_study(folder):
    with folder.held():
        found = study_status(folder.root)
    assert (found.state, found.done, found.steps) == ("running", 2, 6)
    assert found.trials == {"done": 2, "running": 1, "failed": 1, "waiting": 1}
    assert [(step["kind"], step["progress"]) for step in found.running] == [("heal", "healing: 40%, 500 tokens/s")]
    assert found.failures == ["heal key3: ValueError: no"]


def test_a_stopped_study(folder):
    found = study_status(folder.root)
    assert (found.state, found.running) == ("stopped", [])
    assert found.trials == {"done": 2, "failed": 1, "waiting": 2}
    shown = invoke("study", "study.yaml", "-o", folder.root, "--status")
    assert shown.exit_code == 0
    assert "stopped" in shown.stdout
    assert "ValueError: no" in shown.stdout


@pytest.mark.usefixtures("own_cache", "named_data")
def test_a_finished_study_run_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr("shortstack.study.workers.local", lambda workers=1: inline())
    words = ("study", write_study(tmp_path, SHORT), "-o", tmp_path / "runs", "--json")
    assert json.loads(invoke(*words, "--dry-run").stdout)["steps"] == {"evaluate": 2, "plan": 1, "prune": 1, "score": 1}
    assert not (tmp_path / "runs").exists()
    assert json.loads(invoke(*words).stdout)["done"] == 1
    found = json.loads(invoke(*words, "--status").stdout)
    assert (found["state"], found["trials"], found["done"], found["steps"]) == ("finished", {"done": 1}, 5, 5)


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(DataError):
        study_status(tmp_path)
