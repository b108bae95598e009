"""Artefacts at a URL: workers that share no folder with the study leave there what they would leave beside it."""

import uuid
from functools import partial
from pathlib import Path

import pytest
from fsspec.core import url_to_fs

from shortstack.errors import InputError
from shortstack.runs.artefacts import Remote, Shared, local_copies
from shortstack.study import run_study
from studies import QUICK, SHORT, STUDY, found, inline, write_study

pytestmark = pytest.mark.usefixtures("own_cache", "named_data")


@pytest.fixture
def url():
    place = f"/{uuid.uuid4().hex}"
    yield f"memory://{place}"
    url_to_fs("memory://")[0].rm(place, recursive=True)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def files_at(url: str) -> dict[str, bytes]:
    files, root = url_to_fs(url)
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def lasting(files):
    """Weights and configs: other files tell of times and places."""
    return {name: data for name, data in files.items() if name.endswith((".safetensors", "config.json"))}


def test_a_study_with_artefacts_at_a_url_ends_as_one_beside_them(tmp_path):
    """And the machine keeps nothing of a step that is done."""
    study, url = write_study(tmp_path), f"file://{tmp_path}/bucket"
    run_study(study, tmp_path / "here", launcher=inline, keep="all")
    outcome = run_study(study, tmp_path / "there", launcher=inline, keep="all", artefacts=url)
    assert (outcome.done, outcome.failed) == (4, 0), outcome.failures
    assert found(tmp_path / "there") == found(tmp_path / "here")
    here, there = files_of(tmp_path / "here" / "artefacts"), files_at(url)
    assert there.keys() == here.keys()
    assert lasting(there) == lasting(here)
    assert lasting(here)
    assert not files_of(tmp_path / "there" / "artefacts")
    logs = {path.name for path in (tmp_path / "here" / "logs").iterdir()}
    assert {path.name for path in (tmp_path / "there" / "logs").iterdir()} == logs
    assert files_of(tmp_path / "cache" / "steps") == {}


def test_weights_that_nothing_needs_are_removed_there_and_made_again(url, tmp_path):
    text = STUDY.replace("metrics: [reverse, ppl]", "metrics: []").replace(f"[none, {QUICK}]", f"{QUICK}")
    text += "trials:\n- {metric: reverse, heal: none}\n- {metric: layers 4-5, heal: quick}\n"
    outcome = run_study(write_study(tmp_path, text), tmp_path / "runs", launcher=inline, keep="none", artefacts=url)
    assert (outcome.done, outcome.failed) == (2, 0), outcome.failures
    assert outcome.steps == len(found(tmp_path / "runs")["steps"]) + 1  # the cut was written twice
    assert not [name for name in files_at(url) if name.endswith(".safetensors")]
    assert [name for name in files_at(url) if name.endswith("shortstack.json")]


def test_a_failed_step_is_logged_where_the_study_is(url, tmp_path, study_data):
    (study_data / "wrong.jsonl").write_text('{"text": "one line"}\n', encoding="utf-8")  # nothing is left to train
    text = STUDY.replace(f"[none, {QUICK}]", QUICK.replace("lines", "wrong")).replace("[reverse, ppl]", "[reverse]")
    outcome = run_study(write_study(tmp_path, text), tmp_path / "runs", launcher=inline, artefacts=url)
    assert "held out" in outcome.failures[0]["error"]
    assert Path(outcome.failures[0]["log"]).exists()


def test_a_study_stays_where_its_artefacts_are(tmp_path):
    study, runs = write_study(tmp_path, SHORT), tmp_path / "runs"
    there = f"file://{tmp_path}/bucket"
    run = partial(run_study, study, runs, launcher=inline)
    run(artefacts=there)
    with pytest.raises(InputError, match=r"artefacts: .* To fix it: name file://"):
        run()
    with pytest.raises(InputError, match=r"bucket, found file://.*/other"):
        run(artefacts=f"file://{tmp_path}/other")
    assert run(artefacts=there).steps == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/a/path", "found /a/path: a path"),
        ("nowhere://x", "Protocol not known"),
        ("file:///proc/nothing", "found file"),
    ],
)
def test_a_url_that_cannot_be_written_is_refused_before_anything_runs(url, said, tmp_path):
    with pytest.raises(InputError, match=said):
        run_study(write_study(tmp_path), tmp_path / "runs", launcher=inline, artefacts=url)
    assert found(tmp_path / "runs")["steps"] == {}


def test_a_folder_is_put_whole_in_place_of_what_was_there(url, tmp_path):
    for name, content in (("a.txt", "a"), ("deep/er/b.txt", "b")):
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "left.txt").write_text("of a run that was killed")
    remote = Remote(url)
    remote.put("key", tmp_path / "old")
    remote.put("key", tmp_path / "new")
    with local_copies({"model": "demo", "checkpoint": remote.place("key")}, tmp_path / "scratch") as places:
        assert places["model"] == "demo"
        assert files_of(Path(places["checkpoint"])) == {"a.txt": b"a", "deep/er/b.txt": b"b"}
    assert not (tmp_path / "scratch").exists()


def test_both_kinds_of_place_tell_of_weights_alike(url, tmp_path):
    written = tmp_path / "partial" / "key"
    written.mkdir(parents=True)
    (written / "model.safetensors").write_text("weights")
    (written / "config.json").write_text("{}")
    remote, shared = Remote(url), Shared(tmp_path / "artefacts")
    shared.root.mkdir()
    remote.put("key", written)
    shared.take("key", written)
    for each in (remote, shared):
        assert each.has_weights("key")
        each.drop_weights("key")
        assert not each.has_weights("key")
        assert not each.has_weights("another")
    assert files_at(url).keys() == {"key/config.json"} == {f"key/{name}" for name in files_of(shared.root / "key")}


class _Climbing:
    """Files of an object store, one of which has a name that leads above its folder."""

    def find(self, place: str) -> list[str]:
        return [f"{place}/../escaped"]

    def get_file(self, _path: str, target: str) -> None:
        Path(target).write_text("from elsewhere")


def test_a_name_of_an_object_that_leads_elsewhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Remote, "_files", lambda _: _Climbing())
    with pytest.raises(InputError, match="names of files below it"):
        Remote("memory://runs").fetch("key", tmp_path / "copy")
    assert not (tmp_path / "escaped").exists()
