"""The notebook runs from its first cell to its last, and keeps what its cells showed."""

from __future__ import annotations

import json

import pytest

import notebook
from shortstack.checkpoint import Checkpoint
from zoo import speaking

TOUR = json.loads(notebook.NOTEBOOK.read_text(encoding="utf-8"))


def test_every_cell_runs(tmp_path, monkeypatch):
    tiny, opened = speaking(tmp_path / "model", num_hidden_layers=10, max_position_embeddings=2048), Checkpoint.open
    monkeypatch.setattr(
        Checkpoint, "open", lambda model, **options: opened(tiny if model == "demo" else model, **options)
    )
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shown = list(notebook.executed(notebook.cells(TOUR)))
    assert (tmp_path / "healed" / "model.safetensors").is_file()
    tables = [each["data"]["text/html"] for outputs in shown for each in outputs if "text/html" in each.get("data", {})]
    assert len(tables) >= 5


def test_it_is_one_that_jupyter_opens():
    assert TOUR["nbformat"] == 4
    for cell in TOUR["cells"]:
        assert {"cell_type", "metadata", "source", "id"} <= cell.keys()


@pytest.mark.parametrize("cell", notebook.cells(TOUR), ids=lambda cell: cell["id"])
def test_it_keeps_what_its_cells_showed(cell):
    source = "".join(cell["source"])
    shows = not source.startswith(notebook.INSTALLS) and not source.splitlines()[-1].startswith(("import", "from"))
    assert bool(cell["outputs"]) == shows
