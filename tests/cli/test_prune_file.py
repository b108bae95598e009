"""prune and verify of .gguf files, by the command line."""

import json
import sys

import pytest

from gguf_models import MAKERS
from shortstack.checkpoint.gguf_file import read_gguf
from shortstack.cli import main


@pytest.fixture
def place(tmp_path, monkeypatch, own_cache):
    MAKERS["llama"](tmp_path / "whole.gguf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, monkeypatch, *words, code=0):
    monkeypatch.setattr(sys, "argv", ["shortstack", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == code
    return capsys.readouterr()


def test_layers_are_named_and_the_file_is_verified(place, capsys, monkeypatch):
    words = ("prune", "whole.gguf", "--layers", "2-3", "-o", "deep/small.gguf", "--json")
    made = json.loads(said(capsys, monkeypatch, *words).out)
    model = read_gguf(place / "deep" / "small.gguf")
    assert (made["kept"], made["output"]) == ([0, 1, 4, 5, 6, 7], "deep/small.gguf")
    assert made["bytes"]["after"] == sum(len(tensor.data) for tensor in model.tensors)
    found = said(capsys, monkeypatch, "verify", "deep/small.gguf", "--against", "whole.gguf", "--json")
    assert all(check["ok"] for check in json.loads(found.out)["checks"].values())
    content = bytearray((place / "deep" / "small.gguf").read_bytes())
    content[-100] ^= 1
    (place / "deep" / "small.gguf").write_bytes(content)
    assert "FAILED" in said(capsys, monkeypatch, "verify", "deep/small.gguf", "--against", "whole.gguf", code=1).out


def test_a_plan_is_applied(place, capsys, monkeypatch):
    words = ("prune", "whole.gguf", "--plan", "plan.json", "-o", "small.gguf", "--json")
    (place / "plan.json").write_text(json.dumps({"layers": 8, "removed": [1, 5], "strategy": "mine"}))
    made = json.loads(said(capsys, monkeypatch, *words).out)
    assert (made["kept"], made["output"]) == ([0, 2, 3, 4, 6, 7], "small.gguf")


def test_a_dry_run_counts_what_stays_and_writes_no_model(place, capsys, monkeypatch):
    file = read_gguf(place / "whole.gguf")
    kept = sum(len(tensor.data) for tensor in file.tensors if tensor.block not in (2, 3))
    foreseen = ("prune", "whole.gguf", "-o", "small.gguf", "--dry-run", "--json")
    named = json.loads(said(capsys, monkeypatch, *foreseen, "--layers", "2-3").out)
    assert (named["removed"], named["disk_bytes"]) == ([2, 3], kept)
    assert not (place / "cache" / "gguf").exists(), "nothing is dequantised to copy bytes"
    chosen = json.loads(said(capsys, monkeypatch, *foreseen, "--drop", "2", "--text", "pydoc", "--samples", "2").out)
    assert (len(chosen["removed"]), chosen["disk_bytes"]) == (2, kept)
    assert sorted(path.name for path in place.glob("*.gguf")) == ["whole.gguf"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("prune", "whole.gguf", "--layers", "9", "-o", "small.gguf"), "layers from 0 to 7"),
        (("prune", "whole.gguf", "--layers", "2", "--repair", "-o", "small.gguf"), "write a directory"),
        (("prune", "whole.gguf", "--layers", "2", "-o", "whole.gguf"), "the model itself"),
        (("prune", "whole.gguf", "--layers", "2", "-o", "a-00001-of-00002.gguf"), "with llama-gguf-split"),
        (("prune", "whole.gguf", "--layers", "9", "-o", "small.gguf", "--dry-run"), "layers from 0 to 7"),
        (("prune", "whole.gguf", "--memory", "900GB", "-o", "small.gguf"), "--memory"),
        (("prune", ".", "--layers", "2", "-o", "small.gguf"), "GGUF is cut from GGUF"),
        (("prune", "cut.gguf", "--layers", "2", "-o", "small.gguf"), "ends after 3,000 bytes"),
        (("prune", "text.gguf", "--layers", "2", "-o", "small.gguf"), "starts with 'GGUF'"),
        (("verify", "whole.gguf", "--against", "whole.gguf"), "shortstack.kept_layers"),
        (("verify", "whole.gguf", "--against", "."), "--against"),
    ],
)
def test_bad_input_is_said_and_leaves_nothing(words, expected, place, capsys, monkeypatch):
    (place / "cut.gguf").write_bytes((place / "whole.gguf").read_bytes()[:3000])
    (place / "text.gguf").write_text("no model at all")
    before = sorted(place.iterdir())
    told = said(capsys, monkeypatch, *words, code=2)
    assert any(each in told.err for each in expected.split("|"))
    assert "Traceback" not in told.err
    assert sorted(place.iterdir()) == before
