"""A push to the hub, against one on this machine: what goes there, what is refused, and how it goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pytest
import yaml
from huggingface_hub import CommitInfo, constants

import hub_stub
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.cli import main
from shortstack.errors import CheckpointError, InputError, OutputError, ShortstackError
from shortstack.exporting import push_to_hub
from shortstack.pruning import prune, verify
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_anything")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_stub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    source = Checkpoint.open(speaking(folder / "source"))
    (source.directory / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    return prune(source, plan(8, layers="3-4"), folder / "small").directory


@pytest.fixture
def pruned(written, tmp_path):
    return Checkpoint.open(shutil.copytree(written, tmp_path / "small"))


def test_what_was_written_lies_there_with_its_card(pruned, hub):
    (pruned.directory / "notes.txt").write_text("mine alone")
    pushed = push_to_hub(pruned, "me/small", private=True)
    repository = hub.repositories["me/small"]
    assert repository.private
    assert set(repository.files) - {".gitattributes"} == {*pruned.record["files"], "shortstack.json", "README.md"}
    for name in pruned.record["files"]:
        assert repository.files[name] == (pruned.directory / name).read_bytes()
    card = repository.files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert 'from_pretrained("me/small")' in card
    assert (pushed.oid, pushed.pr_url) == (repository.head, None)
    with pytest.raises(OutputError, match=r"one with .* files, README\.md among them"):
        push_to_hub(pruned, "me/small")
    assert repository.commits == [pushed.oid]
    push_to_hub(pruned, "me/small", pr=True, licence="apache-2.0")
    assert yaml.safe_load(repository.files["README.md"].decode().split("---")[1])["license"] == "apache-2.0"
    assert len(hub.said("PUT", "/upload/")) == 1, "weights that lie there are not sent again"


def test_an_unknown_licence_is_asked_for(pruned, hub):
    (pruned.directory / "README.md").write_text("# Mine\n\nwords of my own\n", encoding="utf-8")
    with pytest.raises(InputError, match="license: expected the licence of the source"):
        push_to_hub(pruned, "me/small")
    assert not hub.calls
    push_to_hub(pruned, "me/small", licence="apache-2.0")
    card = hub.repositories["me/small"].files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1]) == {"license": "apache-2.0"}
    assert "words of my own" in card


def test_a_pull_request_is_offered(pruned, hub):
    hub.repositories["me/small"] = hub_stub.Repository(files={"model.safetensors": b"theirs"})
    assert "/discussions/" in push_to_hub(pruned, "me/small", pr=True).pr_url
    assert not hub.said("POST", "/repos/create")


def test_it_goes_on_where_it_was_broken_off(pruned, hub):
    hub.fail["/api/models/me/small/commit"] = [503] * 20
    with pytest.raises(ShortstackError, match="nothing is sent twice"):
        push_to_hub(pruned, "me/small")
    sent = len(hub.said("PUT", "/upload/"))
    assert sent == 1
    hub.fail.clear()
    push_to_hub(pruned, "me/small")
    assert len(hub.said("PUT", "/upload/")) == sent


def listed(directory, name, content):
    """Have the manifest list a file, with the size and digest of a content."""
    record = json.loads((directory / "shortstack.json").read_text())
    record["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "shortstack.json").write_text(json.dumps(record))


def test_a_manifest_that_names_files_elsewhere_sends_none(pruned, hub, tmp_path):
    """A decoy of the same content lies in the folder, by which the name would be verified."""
    for place in (tmp_path, pruned.directory):
        (place / "secret.txt").write_text("my own words")
    listed(pruned.directory, "../secret.txt", b"my own words")
    with pytest.raises(CheckpointError, match=r"files of its own folder.*secret\.txt"):
        push_to_hub(pruned.directory, "me/small")
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
        push_to_hub(pruned.directory, "me/small")
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
        push_to_hub(pruned, "me/small", private=True)
    assert not hub.said("PUT", "/upload/")
    assert [*hub.repositories["me/small"].files] == [".gitattributes"]


def test_what_comes_after_a_pull_request_names_its_revision(pruned, monkeypatch, capsys):
    offered = "https://huggingface.co/me/small/discussions/7"
    made = CommitInfo("https://huggingface.co/me/small/commit/c", "", "", "c", pr_url=offered)
    monkeypatch.setattr("shortstack.exporting.push_to_hub", lambda *_, **__: made)
    monkeypatch.setattr(
        sys, "argv", ["shortstack", "export", str(pruned.directory), "--push-to-hub", "me/small", "--pr"]
    )
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr()
    assert f"hub: {offered}" in told.out
    assert "AutoModelForCausalLM.from_pretrained('me/small', revision='refs/pr/7')" in " ".join(told.err.split())


def test_what_the_hub_refuses_is_told(pruned, hub):
    hub.fail["/api/repos/create"] = [401]
    with pytest.raises(ShortstackError, match="token that may write"):
        push_to_hub(pruned, "me/small")


def test_a_hub_that_does_not_answer_is_told(pruned, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_anything")
    with pytest.raises(ShortstackError, match="the hub to take it"):
        push_to_hub(pruned, "me/small")


def test_what_is_no_name_of_a_repository_is_refused(pruned, hub):
    with pytest.raises(InputError, match="org/name"):
        push_to_hub(pruned, "../x")
    assert not hub.calls


def test_what_was_changed_since_is_not_pushed(pruned, hub):
    config = json.loads((pruned.directory / "config.json").read_text())
    (pruned.directory / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    with pytest.raises(CheckpointError, match=r"config.json has"):
        push_to_hub(pruned.directory, "me/small")
    assert not hub.calls
