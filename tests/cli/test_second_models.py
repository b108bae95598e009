"""The unpruned model as a verb's second one, and what is said next: it is the one that was cut, at its commit."""

from __future__ import annotations

import json
import shutil

import pytest

from command import ended
from shortstack.checkpoint import Checkpoint
from zoo import speaking

COMMIT = "c" * 40


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cut of a model of the hub, and that model as it was then, for whoever asks for its commit."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    speaking(tmp_path / "then")
    assert ended("prune", "then", "--layers", "3", "-o", "cut").exit_code == 0
    record = json.loads((tmp_path / "cut" / "shortstack.json").read_text())
    record["source"] |= {"id": "org/model", "revision": COMMIT}
    (tmp_path / "cut" / "shortstack.json").write_text(json.dumps(record))
    opened = Checkpoint.open

    def from_the_hub(model, *, revision=None, **how):
        if str(model) == "org/model":
            assert revision == COMMIT, "the default branch may be another model by now"
            return opened(tmp_path / "then", **how)
        return opened(model, revision=revision, **how)

    monkeypatch.setattr(Checkpoint, "open", from_the_hub)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "cut", "--against", "org/model"),
        ("evaluate", "cut", "--against", "org/model", "--samples", "2", "--length", "16", "--no-collapse-check"),
        ("profile", "cut", "--against", "org/model", "--no-speed"),
        ("heal", "cut", "--teacher", "org/model", "--loss", "distill", "--data", "pydoc", "-o", "out", "--dry-run"),
    ],
    ids=lambda words: words[0],
)
def test_a_verb_opens_the_unpruned_model_at_the_commit_that_was_cut(words, place):
    told = ended(*words)
    assert told.exit_code == 0, told.stderr


def test_a_model_of_another_name_is_opened_as_it_is_typed(place):
    shutil.copytree(place / "then", place / "other")
    assert ended("verify", "cut", "--against", "other").exit_code == 0


@pytest.mark.parametrize(
    ("recorded", "more"), [("refs/pr/5", ()), ("../../elsewhere", ()), (COMMIT, ("--trust-remote-code",))]
)
def test_a_record_names_no_branch_and_no_commit_whose_code_would_run(recorded, more, place, monkeypatch):
    record = json.loads((place / "cut" / "shortstack.json").read_text())
    record["source"]["revision"] = recorded
    (place / "cut" / "shortstack.json").write_text(json.dumps(record))
    opened, asked = Checkpoint.open, []

    def noted(model, *, revision=None, **how):
        if str(model) == "org/model":
            asked.append(revision)
            return opened(place / "then", **how)
        return opened(model, revision=revision, **how)

    monkeypatch.setattr(Checkpoint, "open", noted)
    assert ended("profile", "cut", "--against", "org/model", "--no-speed", *more).exit_code == 0
    assert asked == [None]
