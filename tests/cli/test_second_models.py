"""The base model as a verb's second one is the one that was pruned, at its commit."""

from __future__ import annotations

import json
import shutil

import pytest

from command import ended
from shortstack.checkpoint import Checkpoint
from zoo import speaking

COMMIT = "c" * 40
SMALL = ("--data", "pydoc", "--max-length", "16", "--max-samples", "8", "--max-steps", "1", "--train-last", "1")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A pruned model of the hub, and its base model at that commit."""
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
        ("evaluate", "cut", "--base", "org/model", "--num-samples", "2", "--seq-length", "16"),
        ("profile", "cut", "--no-speed"),
        ("heal", "cut", "--base", "org/model", "--loss", "distill", *SMALL, "-o", "out"),
    ],
    ids=lambda words: words[0],
)
def test_base_model_is_opened_at_the_commit_that_was_pruned(words, place):
    told = ended(*words)
    assert told.exit_code == 0, told.stderr


def test_model_of_another_name_is_opened_as_typed(place):
    shutil.copytree(place / "then", place / "other")
    assert ended("verify", "cut", "--against", "other").exit_code == 0


@pytest.mark.parametrize(
    ("recorded", "more"), [("refs/pr/5", ()), ("../../elsewhere", ()), (COMMIT, ("--trust-remote-code",))]
)
def test_recorded_revision_is_used_only_if_it_is_a_commit_without_own_code(recorded, more, place, monkeypatch):
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
    assert ended("profile", "cut", "--no-speed", *more).exit_code == 0
    assert asked == [None]
