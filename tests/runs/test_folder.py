"""A study's folder and its store."""

import pytest

from shortstack.errors import DataError, OutputError
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.runs.records import read


def test_one_process_writes_a_store_that_others_read(tmp_path):
    folder = Folder(tmp_path / "runs")
    assert not folder.is_held
    with folder.held(), Store.open(folder) as store:
        store.note(title="kept")
        store.begin("key", "prune", {"drop": 2}, {})
        assert folder.is_held
        with pytest.raises(OutputError), Folder(folder.root).held():
            pytest.fail("held twice")
        runs = read(folder.root)
        assert (runs.title, runs.steps["key"].state, runs.steps["key"].arguments) == ("kept", "running", {"drop": 2})
    assert not folder.is_held
    assert [path.name for path in folder.root.glob("runs.sqlite*")] == ["runs.sqlite"]


@pytest.mark.parametrize("damage", [b"no database", None])
def test_a_damaged_store_is_refused(tmp_path, damage):
    folder = Folder(tmp_path)
    with Store.open(folder) as store:
        store.connection.execute("INSERT INTO steps(key, kind, arguments, state) VALUES('a', 'heal', '{', 'done')")
        store.connection.commit()
    if damage:
        folder.database.write_bytes(damage)
    with pytest.raises(DataError):
        read(tmp_path)


def test_weights_are_complete_if_all_their_files_exist(tmp_path):
    folder = Folder(tmp_path)
    place = folder.artefacts("step")
    place.mkdir(parents=True)
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (place / "model.safetensors.index.json").write_text(index)
    for file, complete in (("model-1.safetensors", False), ("model-2.safetensors", True)):
        (place / file).touch()
        assert folder.has_weights("step") == complete
