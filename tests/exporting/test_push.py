"""A push to the hub: what is handed to huggingface_hub, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import yaml
from huggingface_hub import CommitInfo, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from command import ended
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import changed_since, public_record
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
        return CommitInfo(f"{place}/commit/c", "", "", "c", pr_url=f"{place}/discussions/7" if create_pr else None)


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


def metadata(hub):
    return yaml.safe_load(hub.files["me/small"]["README.md"].decode().split("---")[1])


def test_push_uploads_the_manifest_record_and_card_without_folders(pruned, hub):
    (pruned.directory / "notes.txt").write_text("mine alone")
    moved = Checkpoint.open(pruned.directory.rename(pruned.directory.with_name("moved")))
    pushed = push_to_hub(moved, "me/small", private=True)
    files, record = hub.files["me/small"], moved.record
    assert hub.private["me/small"]
    assert set(files) - {".gitattributes"} == {*record["files"], "shortstack.json", "README.md"}
    assert {name: files[name] for name in record["files"]} == {
        name: (moved.directory / name).read_bytes() for name in record["files"]
    }
    assert Path(record["source"]["id"]).is_absolute()
    assert json.loads(files["shortstack.json"]) == {**record, "source": {**record["source"], "id": "source"}}
    assert files["README.md"].decode().count('from_pretrained("me/small")') == 2
    assert metadata(hub)["license"] == "mit"
    assert (pushed.oid, pushed.pr_url) == ("c", None)


def test_push_into_a_used_repository_is_a_pull_request_or_refused(pruned, hub):
    push_to_hub(pruned, "me/small")
    with pytest.raises(OutputError):
        push_to_hub(pruned, "me/small")
    assert hub.api.create_commit.call_count == 1
    assert push_to_hub(pruned, "me/small", create_pr=True, licence="apache-2.0").pr_url.endswith("/discussions/7")
    assert metadata(hub)["license"] == "apache-2.0"
    told = ended("export", pruned.directory, "--push-to-hub", "me/small", "--create-pr", "--license", "mit")
    assert "hub: https://huggingface.co/me/small/discussions/7" in told.stdout
    assert "from_pretrained('me/small', revision='refs/pr/7')" in " ".join(told.stderr.split())


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(
            (place, "m")
            for place in ("/home/me/m", "/home/me/m/", "./m", "../../m", "~/m", "a/b/m", "models/m", "/a=b,c/m")
        ),
        *((place, "m") for place in (r"C:\me\m", "C:/me/m", r"\\server\share\m")),
        *(("demo", "demo"), ("/home/me/demo", "./demo")),
    ],
)
def test_public_record_has_names_in_place_of_folders(place, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = {"model": {"source": place, "revision": None}}
    shown = public_record({"source": {"id": place, "revision": None}, "origin": {"scores": scores}})
    assert shown == {
        "source": {"id": name, "revision": None},
        "origin": {"scores": {"model": {"source": name, "revision": None}}},
    }
    of_hub = {"source": {"id": "org/wiki.en", "revision": "c"}}
    assert public_record(of_hub) == of_hub


@pytest.mark.parametrize("form", ["{}", "see {}/notes.txt", "[data]({}/my_notes)"])
def test_push_refuses_a_card_that_names_a_folder(form, pruned, hub):
    card = pruned.directory / "README.md"
    card.write_text(f"{card.read_text()}\n{form.format(pruned.directory.parent)}\n".replace("_", r"\_"))
    with pytest.raises(CheckpointError, match="README"):
        push_to_hub(pruned, "me/small")
    assert not hub.api.mock_calls


def test_push_refuses_a_record_that_names_a_folder(pruned, hub):
    record = json.loads((pruned.directory / "shortstack.json").read_text())
    record["plan"]["strategy"] = record["source"]["id"]
    (pruned.directory / "shortstack.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"shortstack\.json"):
        push_to_hub(pruned.directory, "me/small")
    assert not hub.api.mock_calls


def test_an_uploaded_record_is_of_the_same_step_as_the_local_one():
    healed = {"verb": "heal", "source": {"id": "/home/me/cut", "revision": None}}
    cut = {"verb": "prune", "source": {"id": "me/small", "revision": None}}
    for kept, other in ((healed, public_record(healed)), (public_record(healed), healed)):
        made, source = SimpleNamespace(records=[cut, kept]), SimpleNamespace(record={**other, "files": {}})
        assert not changed_since(made, source)
        other_source = {"id": "another", "revision": None}
        assert changed_since(made, SimpleNamespace(record={**other, "source": other_source}))


def test_push_needs_a_licence_and_replaces_all_of_an_old_one(pruned, hub):
    card = pruned.directory / "README.md"
    card.write_text("# Mine\n\nwords of my own\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        push_to_hub(pruned, "me/small")
    assert error.value.option == "license"
    assert not hub.api.mock_calls
    push_to_hub(pruned, "me/small", licence="apache-2.0")
    assert "words of my own" in hub.files.pop("me/small")["README.md"].decode()
    card.write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n# Mine\n", encoding="utf-8")
    push_to_hub(pruned, "me/small", licence="apache-2.0")
    assert metadata(hub) == {"license": "apache-2.0"}


def listed(directory, name, content):
    """Have the manifest list a file, with the size and digest of a content."""
    record = json.loads((directory / "shortstack.json").read_text())
    record["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "shortstack.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "name", ["../secret.txt", "secret.txt", "training_config.json", "additional_chat_templates/x.json"]
)
def test_push_refuses_a_manifest_with_files_that_no_loader_reads(name, pruned, hub):
    for place in (pruned.directory / name, pruned.directory / Path(name).name):
        place.parent.mkdir(exist_ok=True)
        place.write_text("my own words")
    listed(pruned.directory, name, b"my own words")
    with pytest.raises(CheckpointError, match=Path(name).name):
        push_to_hub(pruned.directory, "me/small")
    assert not hub.api.mock_calls


@pytest.mark.parametrize("name", ["vocab.txt", "README.md", "additional_chat_templates"])
def test_push_follows_no_link_out_of_the_folder(name, pruned, hub, tmp_path):
    outside = tmp_path / "secret"
    if name == "additional_chat_templates":
        outside.mkdir()
        (outside / "tool.jinja").write_text("my own words")
    else:
        outside.write_text("---\nlicense: mit\n---\nmy own words")
    (pruned.directory / name).unlink(missing_ok=True)
    (pruned.directory / name).symlink_to(outside)
    if name == "vocab.txt":
        listed(pruned.directory, name, outside.read_bytes())
    with pytest.raises(CheckpointError, match=f"{name} is a link"):
        push_to_hub(pruned.directory, "me/small")
    assert not hub.api.mock_calls


def test_a_snapshot_of_the_hub_links_to_its_own_blobs(pruned, tmp_path):
    snapshot = tmp_path / "models--me--small" / "snapshots" / ("0" * 40)
    blobs = shutil.copytree(pruned.directory, tmp_path / "models--me--small" / "blobs")
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert verify(Checkpoint.open(snapshot)).ok
    (snapshot / "more.txt").symlink_to("../../../elsewhere.txt")
    with pytest.raises(CheckpointError, match="elsewhere"):
        Checkpoint.open(snapshot)


def test_private_stays_private(pruned, hub):
    with pytest.raises(InputError) as error:
        push_to_hub(pruned, "me/small", private=True, create_pr=True)
    assert error.value.option == "private"
    assert not hub.files
    assert ended("export", pruned.directory, "--push-to-hub", "me/small", "--private", "--create-pr").exit_code == 2
    hub.create_repo("me/small", private=False, exist_ok=True)
    with pytest.raises(InputError) as error:
        push_to_hub(pruned, "me/small", private=True)
    assert error.value.option == "private"
    assert [*hub.files["me/small"]] == [".gitattributes"]


@pytest.mark.parametrize("method", ["create_repo", "create_commit"])
def test_a_refusal_of_the_hub_is_reported(method, pruned, hub):
    getattr(hub.api, method).side_effect = HfHubHTTPError.__bases__[0]("401 Unauthorized")
    with pytest.raises(ShortstackError, match="401 Unauthorized"):
        push_to_hub(pruned, "me/small")


def test_a_hub_out_of_reach_is_reported(pruned, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_anything")
    with pytest.raises(ShortstackError, match="the hub did not take"):
        push_to_hub(pruned, "me/small")


def test_push_refuses_files_changed_since(pruned, hub):
    config = json.loads((pruned.directory / "config.json").read_text())
    (pruned.directory / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    with pytest.raises(CheckpointError, match=r"config.json"):
        push_to_hub(pruned.directory, "me/small")
    assert not hub.api.mock_calls
