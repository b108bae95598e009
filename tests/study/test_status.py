"""study --status: what a study's folder shows while the study runs, after it was stopped, and at its end."""

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
    """Of five trials two are done, one runs, one has failed and one waits; another step is of no trial any more."""
    folder = Folder(tmp_path / "runs")
    with folder.held(), Store.open(folder) as store:
        store.note(title="healings", steps=6, finished=False)
        for number, state in enumerate(("done", "done", "running", "failed", "waiting")):
            store.begin(f"key{number}", "heal", {}, {})
            if state != "running":
                store.end(f"key{number}", "failed" if state == "failed" else "done", {"error": "ValueError: no"})
            steps = {"heal": f"key{number}"} if state != "waiting" else {}
            store.put_trial(f"trial{number}", number=number, settings={}, state=state, steps=steps)
        folder.log("key2").write_text("healing: 10%\nhealing: 40%, 500 tokens/s\n")
    return folder


def test_a_study_is_running_while_its_folder_is_held_and_stopped_after_it(folder):
    with folder.held():
        found = study_status(folder.root)
    assert (found.state, found.done, found.steps) == ("running", 2, 6)
    assert found.trials == {"done": 2, "running": 1, "failed": 1, "waiting": 1}
    assert [(step["kind"], step["progress"]) for step in found.running] == [("heal", "healing: 40%, 500 tokens/s")]
    found = study_status(folder.root)
    assert (found.state, found.running) == ("stopped", [])
    assert found.trials == {"done": 2, "failed": 1, "waiting": 2}
    assert "ValueError: no" in invoke("study", "study.yaml", "-o", folder.root, "--status").stdout


@pytest.mark.usefixtures("own_cache", "named_data")
def test_a_finished_study_run_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr("shortstack.study.workers.local", lambda workers=1: inline())
    words = ("study", write_study(tmp_path, SHORT), "-o", tmp_path / "runs", "--json")
    assert json.loads(invoke(*words, "--dry-run").stdout)["steps"] == {"evaluate": 2, "plan": 1, "prune": 1, "score": 1}
    assert not (tmp_path / "runs").exists()
    assert json.loads(invoke(*words).stdout)["ran"] == 5
    found = json.loads(invoke(*words, "--status").stdout)
    assert (found["state"], found["trials"], found["done"], found["steps"]) == ("finished", {"done": 1}, 5, 5)


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(DataError):
        study_status(tmp_path)
