"""The model that a name stands for."""

import shutil

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.card import base_model
from shortstack.checkpoint.file_names import DEMO_HUB_ID
from shortstack.checkpoint.source import gguf_of
from shortstack.cli import main
from shortstack.errors import CheckpointError
from zoo import tiny


def test_a_folder_named_demo_comes_before_the_packaged_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert base_model({"source": {"id": "demo"}}) == DEMO_HUB_ID
    shutil.copytree(tiny("llama"), "demo")
    assert Checkpoint.open("demo").anatomy.layers == 8
    assert gguf_of("demo") is None
    assert base_model({"source": {"id": "demo"}}) is None
    words = ["plan", "demo", "--metric", "reverse", "--drop", "2", "--mergekit", "slices.yaml"]
    monkeypatch.setattr("sys.argv", ["shortstack", *words])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "model: demo" in (tmp_path / "slices.yaml").read_text()
    assert "6-7" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names", [("Notes.txt", "notes.txt"), ("caf\u00e9.json", "cafe\u0301.json")], ids=["case", "unicode"]
)
def test_names_that_are_one_file_elsewhere_are_refused(names, tmp_path):
    shutil.copytree(tiny("llama"), tmp_path / "model")
    for name in names:
        (tmp_path / "model" / name).write_text("{}", encoding="utf-8")
    if len([*(tmp_path / "model").iterdir()]) == len([*tiny("llama").iterdir()]) + 1:
        pytest.skip("they are one file here")
    with pytest.raises(CheckpointError, match="file names that differ by more than case, found "):
        Checkpoint.open(tmp_path / "model")
