"""All of a shrink in seconds: what is left is what the study says and what comes behind it."""

import pytest

from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.step_progress import Keeper
from shortstack.study.progress import KindProgress, RunningStep, StepProgress, seconds_to_go, study_progress
from shortstack.study.whole_progress import WholeProgress

ROW = {"arguments": {}, "inputs": {}, "command": ""}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Of a plan and a healing, planned at 20 and 100 s, the plan is done in 30, and healing has run for 10."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    folder = Folder(tmp_path / "study")
    folder.make()
    with Store.open(folder) as store:
        store.note(expected={"plan": 1, "heal": 1}, planned={"plan": 20.0, "heal": 100.0})
        store.begin("plan", {**ROW, "kind": "plan"})
        store.end("plan", "done", {"result": {}, "seconds": 30.0})
        store.begin("heal", {**ROW, "kind": "heal"})
        store.set_trial("only", {"number": 0, "settings": {}, "state": "running"}, {"plan": "plan", "heal": "heal"})
        now[0] = 1010.0
        yield folder


def test_it_tells_the_seconds_that_all_takes_and_what_is_done(study):
    clock, told = [50.0], []
    whole = WholeProgress(lambda *said, note="": told.append((*said, note)), 300.0, clock=lambda: clock[0])
    whole.before("measuring the speed", 0, 1)
    assert told[-1] == ("shrink", 0, 300, "measuring the speed")
    clock[0] = 55.0
    whole.expect(160.0, after=15.0)
    whole.before("writing", 3, 4, note="9 MB")
    assert told[-1] == ("shrink", 5, 160, "writing 3 of 4, 9 MB")
    clock[0] = 25.0 + 50.0
    whole.before("writing", 4, 4)
    assert told[-1] == ("shrink", 25, 160, "writing 4 of 4"), "what is left becomes less while nothing new is known"
    Keeper(study.progress("heal"), lambda *_, note="": None)("healing", 30, 120, note="500 tokens/s")
    clock[0] = 95.0
    with Store.open(study) as store:
        store.note(after=15.0)
    whole.study(study.root)("study", 1, 2)
    heal = 100 * (1 + 10 / 120) - 10  # planned, later as all are, and 10 s of it have passed
    assert told[-1] == (
        "shrink",
        45,
        round(45 + heal + 15),
        "step 2 of 2, healing: healing 30 of 120, 500 tokens/s",
    )
    with Store.open(study) as store:
        store.note(after=55.0)
    whole.study(study.root)("study", 1, 2)
    assert study_progress(study.root).eta == pytest.approx(heal + 55), "who watches it hears the same"
    assert told[-1][2] == round(45 + heal + 15 + 40)
    clock[0] = 200.0
    whole.behind("timing", 1, 4)
    clock[0] = 205.0
    whole.behind("timing", 2, 4)
    assert told[-1] == ("shrink", 155, 165, "timing 2 of 4")
    whole.end()
    assert told[-1] == ("shrink", 155, 155, "")


def test_a_step_takes_at_least_what_its_stage_needs():
    kinds = {"heal": KindProgress(0, 1, 0, 1, None, 60.0)}
    told = StepProgress("healing", 10, 100, "", begun=0.0, at=50.0)
    assert seconds_to_go(kinds, [RunningStep("heal", "", 55.0, told)], 1) == 450.0
    assert seconds_to_go(kinds, [RunningStep("heal", "", 20.0, None)], 1) == 40.0
    assert seconds_to_go(kinds, [RunningStep("heal", "", 90.0, None)], 1) == 0.0
