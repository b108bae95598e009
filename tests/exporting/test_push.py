"""A push to the hub: what is handed to huggingface_hub, what is refused, and what is told of what the hub says."""

from __future__ import annotations

import hashlib
import json
import shutil
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import yaml
from huggingface_hub import CommitInfo, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from command import ended
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import changed_since, without_folders
from shortstack.errors import CheckpointError, InputError, OutputError, ShortstackError
from shortstack.exporting import push_to_hub
from shortstack.pruning import prune, verify
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")


class Hub:
    """Repositories in memory, by the names of HfApi's methods."""

    def __init__(self):
        self.private, self.files, self.api = {}, {}, create_autospec(HfApi, instance=True)
        for method in (self.create_repo, self.model_info, self.create_commit):
            getattr(self.api, method.__name__).side_effect = method

    def create_repo(self, repo_id, *, private, exist_ok):
        self.private.setdefault(repo_id, private)
        self.files.setdefault(repo_id, {".gitattributes": b""})

    def model_info(self, repo_id):
        siblings = [SimpleNamespace(rfilename=name) for name in self.files[repo_id]]
        return SimpleNamespace(private=self.private[repo_id], siblings=siblings)

    def create_commit(self, repo_id, operations, *, commit_message, create_pr):
        for operation in operations:
            with operation.as_file() as file:
                self.files[repo_id][operation.path_in_repo] = file.read()
        place = f"https://huggingface.co/{repo_id}"
        return CommitInfo(f"{place}/commit/c", "", "", "c", pr_url=f"{place}/discussions/1" if create_pr else None)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub.api)
    return hub


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
    files = hub.files["me/small"]
    assert hub.private["me/small"]
    assert set(files) - {".gitattributes"} == {*pruned.record["files"], "shortstack.json", "README.md"}
    for name in pruned.record["files"]:
        assert files[name] == (pruned.directory / name).read_bytes()
    record, source = json.loads(files["shortstack.json"]), pruned.record["source"]
    assert source["id"].endswith("/source"), "a path of this machine"
    assert record == {**pruned.record, "source": {**source, "id": "source"}}
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert 'from_pretrained("me/small")' in card
    assert (pushed.oid, pushed.pr_url) == ("c", None)
    with pytest.raises(OutputError, match=r"one with .* files, README\.md among them"):
        push_to_hub(pruned, "me/small")
    assert hub.api.create_commit.call_count == 1
    push_to_hub(pruned, "me/small", pr=True, licence="apache-2.0")
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *((place, "m") for place in ("/home/me/m", "/home/me/m/", "./m", "../../m", "~/m", "~me/a/m", "a/b/m", "/m")),
        *((place, "m") for place in (r"C:\me\m", "C:/me/m", r"\\server\share\m", "//server/m")),
        *((place, "m") for place in ("/home/a=b,c/m", "models/m")),
        ("demo", "demo"),
        ("/home/me/demo", "./demo"),
    ],
)
def test_others_see_names_in_place_of_paths(place, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert without_folders({"source": {"id": place, "revision": None}})["source"]["id"] == name
    hub = {"id": "org/wiki.en", "revision": "c"}
    assert without_folders({"source": hub}) == {"source": hub}
    assert without_folders({"plan": {"strategy": place}}) == {"plan": {"strategy": place}}
    (tmp_path / "demo").mkdir()
    assert without_folders({"source": {"id": "demo"}}) == {"source": {"id": "./demo"}}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        *((data, data) for data in ("org/set:train", "org/wiki.en=2", "pydoc", "mix=2,self", "a.jsonl")),
        ("/home/me/a.jsonl=0.5,self,b/c.txt", "a.jsonl=0.5,self,c.txt"),
    ],
)
def test_others_see_names_of_data_in_place_of_paths(data, named):
    assert without_folders([{"data": {"data": data}}]) == [{"data": {"data": named}}]


def test_an_uploaded_record_is_that_of_the_same_step():
    """A cut of what was uploaded, beside the healed one on this machine, has no weights that changed since."""
    healed = {"verb": "heal", "source": {"id": "/home/me/cut"}}
    cut = {"verb": "prune", "source": {"id": "me/small"}}
    for kept, other in ((healed, without_folders(healed)), (without_folders(healed), healed)):
        made, source = SimpleNamespace(records=[cut, kept]), SimpleNamespace(record={**other, "files": {}})
        assert not changed_since(made, source)
        assert changed_since(made, SimpleNamespace(record={**other, "source": {"id": "another"}}))


def test_a_folder_that_was_renamed_is_called_by_the_repository_too(pruned, hub):
    moved = pruned.directory.rename(pruned.directory.with_name("moved"))
    push_to_hub(moved, "me/small", private=True)
    card = hub.files["me/small"]["README.md"].decode()
    assert card.count('from_pretrained("me/small")') == 2
    assert 'from_pretrained("small")' not in card


def test_what_is_to_be_private_goes_into_no_pull_request_that_all_see(pruned, hub):
    with pytest.raises(InputError, match="private: expected private for a new repository, or pr"):
        push_to_hub(pruned, "me/small", private=True, pr=True)
    assert not hub.files
    typed = ended("export", pruned.directory, "--push-to-hub", "me/small", "--private", "--pr")
    assert typed.exit_code == 2
    assert "private for a new repository, or pr" in typed.stderr


def test_an_unknown_licence_is_asked_for(pruned, hub):
    (pruned.directory / "README.md").write_text("# Mine\n\nwords of my own\n", encoding="utf-8")
    with pytest.raises(InputError, match="license: expected the licence of the source"):
        push_to_hub(pruned, "me/small")
    assert not hub.api.mock_calls
    push_to_hub(pruned, "me/small", licence="apache-2.0")
    card = hub.files["me/small"]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1]) == {"license": "apache-2.0"}
    assert "words of my own" in card


def test_a_licence_that_is_named_replaces_all_of_the_old_one(pruned, hub):
    old = "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n# Mine\n"
    (pruned.directory / "README.md").write_text(old, encoding="utf-8")
    push_to_hub(pruned, "me/small", licence="apache-2.0")
    card = hub.files["me/small"]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1]) == {"license": "apache-2.0"}


def test_a_pull_request_is_offered(pruned, hub):
    hub.files["me/small"] = {"model.safetensors": b"theirs"}
    assert "/discussions/" in push_to_hub(pruned, "me/small", pr=True).pr_url
    assert not hub.api.create_repo.called


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
    assert not hub.api.mock_calls


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
    assert not hub.api.mock_calls


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
    hub.create_repo("me/small", private=False, exist_ok=True)
    with pytest.raises(InputError, match="which is public"):
        push_to_hub(pruned, "me/small", private=True)
    assert [*hub.files["me/small"]] == [".gitattributes"]


def test_what_comes_after_a_pull_request_names_its_revision(pruned, monkeypatch):
    offered = "https://huggingface.co/me/small/discussions/7"
    made = CommitInfo("https://huggingface.co/me/small/commit/c", "", "", "c", pr_url=offered)
    monkeypatch.setattr("shortstack.exporting.push_to_hub", lambda *_, **__: made)
    told = ended("export", pruned.directory, "--push-to-hub", "me/small", "--pr")
    assert f"hub: {offered}" in told.stdout
    assert "AutoModelForCausalLM.from_pretrained('me/small', revision='refs/pr/7')" in " ".join(told.stderr.split())


@pytest.mark.parametrize("method", ["create_repo", "create_commit"])
def test_what_the_hub_refuses_is_told(method, pruned, hub):
    getattr(hub.api, method).side_effect = HfHubHTTPError.__bases__[0]("401 Unauthorized")
    with pytest.raises(ShortstackError, match=r"found 401 Unauthorized.*token that may write.*nothing is sent twice"):
        push_to_hub(pruned, "me/small")


def test_a_hub_that_does_not_answer_is_told(pruned, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_anything")
    with pytest.raises(ShortstackError, match="the hub to take it"):
        push_to_hub(pruned, "me/small")


def test_what_was_changed_since_is_not_pushed(pruned, hub):
    config = json.loads((pruned.directory / "config.json").read_text())
    (pruned.directory / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    with pytest.raises(CheckpointError, match=r"config.json has"):
        push_to_hub(pruned.directory, "me/small")
    assert not hub.api.mock_calls
