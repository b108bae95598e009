"""A push to the hub, against one on this machine: what goes there, what is refused, and how it goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pytest
import yaml
from huggingface_hub import constants

import hub_stub
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.card import Evaluated
from shortstack.cli import main
from shortstack.errors import CheckpointError, InputError, OutputError, ShortstackError
from shortstack.exporting import push_to_hub
from shortstack.exporting.hub import Pushed
from shortstack.pruning import prune, verify
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")
TEXT = {"value": 21.0, "loss_stderr": 0.1, "tokens": 4096}
FOUND = {"model": "/data/out", "perplexity": {"pydoc": TEXT}, "tasks": [], "probes": {}}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_anything")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_stub.running() as hub:
        yield hub


@pytest.fixture
def pruned(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    (source.directory / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    return prune(source, plan(8, layers="3-4"), tmp_path / "small")


def push(pruned, hub, repository="me/small", **how):
    return push_to_hub(pruned, repository, endpoint=hub.url, **how)


def test_what_was_written_lies_there_with_its_card(pruned, hub):
    (pruned.directory / "notes.txt").write_text("mine alone")
    pushed = push(pruned, hub, private=True, results=[Evaluated("small", FOUND)])
    repository = hub.repositories["me/small"]
    assert repository.private
    assert (
        set(pushed.files)
        == set(repository.files) - {".gitattributes"}
        == {*pruned.record["files"], "shortstack.json", "README.md"}
    )
    for name in pruned.record["files"]:
        assert repository.files[name] == (pruned.directory / name).read_bytes()
    card = repository.files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert 'from_pretrained("me/small")' in card
    assert "| perplexity on pydoc | 21 ± 2.1 (4,096 tokens) |" in card
    assert pushed.commit == repository.head
    assert (pushed.url, pushed.pull_request) == (f"{hub.url}/me/small", None)


def test_an_unknown_licence_is_asked_for(pruned, hub):
    (pruned.directory / "README.md").write_text("# Mine\n\nwords of my own\n", encoding="utf-8")
    with pytest.raises(InputError, match="license: expected the licence of the source"):
        push(pruned, hub)
    assert not hub.calls
    push(pruned, hub, licence="apache-2.0")
    card = hub.repositories["me/small"].files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1]) == {"license": "apache-2.0"}
    assert "words of my own" in card


def test_files_of_others_are_not_overwritten_but_by_a_pull_request(pruned, hub):
    hub.repositories["me/small"] = hub_stub.Repository(files={"model.safetensors": b"theirs"})
    with pytest.raises(OutputError, match=r"one with 1 files, model.safetensors among them"):
        push(pruned, hub)
    assert hub.repositories["me/small"].files == {"model.safetensors": b"theirs"}
    pushed = push(pruned, hub, pr=True)
    assert pushed.pull_request == pushed.url
    assert "/discussions/" in pushed.url


def test_it_goes_on_where_it_was_broken_off(pruned, hub):
    hub.fail["/api/models/me/small/commit"] = [503] * 20
    with pytest.raises(ShortstackError, match="not sent twice"):
        push(pruned, hub)
    sent = len(hub.said("PUT", "/upload/"))
    assert sent == 1
    hub.fail.clear()
    push(pruned, hub)
    assert len(hub.said("PUT", "/upload/")) == sent


def test_what_lies_there_already_is_not_sent_again(pruned, hub):
    """Files that differ are others'. Weights are not downloaded, neither to verify them nor to compare."""
    push(pruned, hub)
    sent = len(hub.said("PUT", "/upload/"))
    assert push(pruned, hub).repository == "me/small"
    assert not hub.said("GET", "model.safetensors")
    assert len(hub.said("PUT", "/upload/")) == sent
    hub.repositories["me/small"].files["README.md"] += b"edited on the hub"
    with pytest.raises(OutputError, match="a repository that does not exist yet, or is empty"):
        push(pruned, hub)


def listed(directory, name, content):
    """Have the manifest list a file, with the size and digest of a content."""
    record = json.loads((directory / "shortstack.json").read_text())
    record["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "shortstack.json").write_text(json.dumps(record))


@pytest.mark.parametrize("where", ["absolute", "above"])
def test_a_manifest_that_names_files_elsewhere_sends_none(where, pruned, hub, tmp_path):
    """A decoy of the same content lies in the folder, by which the name would be verified."""
    secret = tmp_path / "secret.txt"
    secret.write_text("my own words")
    (pruned.directory / secret.name).write_text("my own words")
    name = str(secret) if where == "absolute" else f"../{secret.name}"
    listed(pruned.directory, name, secret.read_bytes())
    with pytest.raises(CheckpointError, match=r"files of its own folder.*secret\.txt"):
        push(Checkpoint.open(pruned.directory), hub)
    assert not hub.calls


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "additional_chat_templates"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(name, pruned, hub, tmp_path):
    outside = tmp_path / "secret"
    if name == "additional_chat_templates":
        outside.mkdir()
        (outside / "tool.jinja").write_text("---\nlicense: mit\n---\nmy own words")
    else:
        outside.write_text("---\nlicense: mit\n---\nmy own words")
    (pruned.directory / name).unlink(missing_ok=True)
    (pruned.directory / name).symlink_to(outside)
    if name == "notes.txt":
        listed(pruned.directory, name, outside.read_bytes())
    with pytest.raises(CheckpointError, match=f"{name}: expected a file of the checkpoint's own folder, found a link"):
        push(pruned.directory, hub)
    assert not hub.calls


def test_a_snapshot_of_the_hub_s_cache_links_to_its_own_blobs(pruned, tmp_path):
    snapshot = tmp_path / "models--me--small" / "snapshots" / ("0" * 40)
    blobs = shutil.copytree(pruned.directory, tmp_path / "models--me--small" / "blobs")
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert verify(Checkpoint.open(snapshot)).ok
    (snapshot / "more.txt").symlink_to("../../../elsewhere.txt")
    with pytest.raises(CheckpointError, match="elsewhere"):
        Checkpoint.open(snapshot)


def test_a_public_repository_is_not_taken_for_a_private_one(pruned, hub):
    hub.repositories["me/small"] = hub_stub.Repository(files={".gitattributes": b""})
    with pytest.raises(InputError, match="which is public"):
        push(pruned, hub, private=True)
    assert not hub.said("PUT", "/upload/")
    assert [*hub.repositories["me/small"].files] == [".gitattributes"]


def test_a_pull_request_to_nothing_is_refused_before_anything_is_sent(pruned, hub):
    with pytest.raises(InputError, match="leave it out, and me/none is made"):
        push(pruned, hub, "me/none", pr=True)
    assert not hub.said("PUT", "/upload/")
    assert not hub.said("POST", "/commit/")


def test_a_licence_that_contradicts_the_sources_is_refused(pruned, hub):
    with pytest.raises(InputError, match="the licence of the source, mit"):
        push(pruned, hub, licence="apache-2.0")
    assert not hub.calls
    assert push(pruned, hub, licence="mit").repository == "me/small"


def test_the_command_says_where_a_pull_request_is(pruned, monkeypatch, capsys):
    made = Pushed("me/small", "https://hub/me/small/discussions/7", "c", "https://hub/me/small/discussions/7", ())
    monkeypatch.setattr("shortstack.exporting.push_to_hub", lambda *_, **__: made)
    monkeypatch.setattr(
        sys, "argv", ["shortstack", "export", str(pruned.directory), "--push-to-hub", "me/small", "--pr"]
    )
    with pytest.raises(SystemExit):
        main()
    assert "hub: https://hub/me/small/discussions/7" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "fix"), [(401, "token that may write"), (403, "token that may write")])
def test_what_the_hub_refuses_is_told(status, fix, pruned, hub):
    hub.fail["/api/repos/create"] = [status]
    with pytest.raises(ShortstackError, match=fix):
        push(pruned, hub)


def test_a_hub_that_does_not_answer_is_told(pruned):
    with pytest.raises(ShortstackError, match="the hub to answer"):
        push_to_hub(pruned, "me/small", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["small", "a/b/c", "../x", "me/"])
def test_what_is_no_name_of_a_repository_is_refused(name, pruned, hub):
    with pytest.raises(InputError, match="org/name"):
        push(pruned, hub, repository=name)
    assert not hub.calls


def test_what_was_changed_since_is_not_pushed(pruned, hub):
    config = json.loads((pruned.directory / "config.json").read_text())
    (pruned.directory / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    with pytest.raises(CheckpointError, match=r"config.json has"):
        push(Checkpoint.open(pruned.directory), hub)
    assert not hub.calls
