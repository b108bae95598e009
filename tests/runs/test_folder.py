"""The lock of a study's folder, and its store."""

import shutil

import pytest

from shortstack.errors import DataError, OutputError
from shortstack.runs import Store
from shortstack.runs.folder import Folder


def test_a_store_is_held_by_one_and_read_by_others_while_it_runs_after_a_kill_and_once_it_has_ended(tmp_path):
    folder, killed = Folder(tmp_path / "runs"), tmp_path / "killed"
    with folder.held(), Store.open(folder) as store:
        store.note(title="kept")
        with pytest.raises(OutputError, match=r"no other process is making.*watch it"), Folder(folder.root).held():
            pytest.fail("held twice")
        shutil.copytree(folder.root, killed, ignore=shutil.ignore_patterns("*-shm", "lock"))
        assert (killed / "runs.sqlite-wal").stat().st_size > 0
        assert title(folder.root) == "kept"
    assert title(killed) == "kept"
    before = {path.name: path.read_bytes() for path in folder.root.iterdir() if path.is_file()}
    assert title(folder.root) == "kept"
    assert {path.name: path.read_bytes() for path in folder.root.iterdir() if path.is_file()} == before


def title(root):
    with Store.open(Folder(root), read_only=True) as store:
        return store.noted()["title"]


def test_weights_are_there_where_all_of_their_files_are(tmp_path):
    """A run that is killed while it removes those of a step leaves some."""
    folder = Folder(tmp_path)
    place = folder.artefacts("step")
    place.mkdir(parents=True)
    assert not folder.has_weights("step")
    (place / "model.safetensors").touch()
    assert folder.has_weights("step")
    (place / "model.safetensors").rename(place / "model-1.safetensors")
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (place / "model.safetensors.index.json").write_text(index)
    assert not folder.has_weights("step")
    (place / "model-2.safetensors").touch()
    assert folder.has_weights("step")


@pytest.mark.parametrize("key", ["../elsewhere", "/elsewhere"])
def test_a_store_s_key_never_leads_out_of_the_folder_of_steps(key, tmp_path):
    """A received study is gone on with: weights of steps that nothing needs are removed, by their keys."""
    folder = Folder(tmp_path)
    with Store.open(folder) as store:
        store.begin(key, "prune", {}, {}, "")
        store.end(key, "done", {"result": {}, "seconds": 1.0, "host": "here"})
    with Store.open(folder) as store, pytest.raises(DataError, match="a key that is the name of a folder"):
        store.steps()
