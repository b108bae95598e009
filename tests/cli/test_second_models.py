"""The base model that a verb opens: by default the one on record, at its commit."""

from __future__ import annotations

import json

import pytest

from command import ended
from shortstack.checkpoint import Checkpoint
from zoo import speaking

COMMIT = "c" * 40
SMALL = ("--data", "pydoc", "--max-length", "16", "--max-samples", "8", "--max-steps", "1", "--train-last", "1")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A pruned model of a base model on the hub, which is opened in the folder `then`; `.revisions` has which."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    speaking(tmp_path / "then")
    assert ended("prune", "then", "--layers", "3", "-o", "pruned").exit_code == 0
    record(tmp_path, COMMIT)
    return tmp_path


def record(place, revision):
    file = place / "pruned" / "shortstack.json"
    data = json.loads(file.read_text())
    data["source"] |= {"id": "org/model", "revision": revision}
    file.write_text(json.dumps(data))


@pytest.fixture
def revisions(place, monkeypatch):
    """The revisions of the base model that were opened."""
    opened, found = Checkpoint.open, []

    def noted(model, *, revision=None, **how):
        if str(model) == "org/model":
            found.append(revision)
            return opened(place / "then", **how)
        return opened(model, revision=revision, **how)

    monkeypatch.setattr(Checkpoint, "open", noted)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "pruned"),
        ("evaluate", "pruned", "--num-samples", "2", "--seq-length", "16"),
        ("profile", "pruned", "--no-speed"),
        ("heal", "pruned", "--loss", "distill", *SMALL, "-o", "out"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("more", [(), ("--base", "org/model")], ids=["on record", "named"])
def test_base_model_is_opened_at_its_commit(words, more, revisions):
    told = ended(*words, *more)
    assert told.exit_code == 0, told.stderr
    assert revisions == [COMMIT]


def test_no_base_and_another_base(revisions):
    assert ended("verify", "pruned", "--no-base").exit_code == 0
    assert ended("verify", "pruned", "--base", "then").exit_code == 0
    assert ended("verify", "pruned", "--base", "none").exit_code == 2
    assert revisions == []


@pytest.mark.parametrize(
    ("recorded", "more"), [("refs/pr/5", ()), ("../../elsewhere", ()), (COMMIT, ("--trust-remote-code",))]
)
def test_recorded_revision_is_used_only_if_it_is_a_commit_without_own_code(recorded, more, place, revisions):
    record(place, recorded)
    assert ended("profile", "pruned", "--no-speed", *more).exit_code == 0
    assert revisions == [None]
