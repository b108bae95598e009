"""prune and verify of .gguf files, by the command line."""

import json

import pytest

from gguf_models import MAKERS
from shortstack.checkpoint.gguf_file import read_gguf


@pytest.fixture
def place(tmp_path, command):
    MAKERS["llama"](tmp_path / "whole.gguf")
    return tmp_path


def test_pruned_file_is_verified(place, command):
    words = ("prune", "whole.gguf", "--layers", "2-3", "-o", "deep/small.gguf", "--json")
    made = json.loads(command.said(*words))
    model = read_gguf(place / "deep" / "small.gguf")
    assert (made["kept"], made["output"]) == ([0, 1, 4, 5, 6, 7], "deep/small.gguf")
    assert made["bytes"]["after"] == sum(len(tensor.data) for tensor in model.tensors)
    verify = ("verify", "deep/small.gguf", "--base", "whole.gguf")
    assert all(check["ok"] for check in json.loads(command.said(*verify, "--json"))["checks"].values())
    content = bytearray((place / "deep" / "small.gguf").read_bytes())
    content[-100] ^= 1
    (place / "deep" / "small.gguf").write_bytes(content)
    code, out, _ = command(*verify)
    assert code == 1
    assert "FAILED" in out


def test_plan_is_applied(place, command):
    words = ("prune", "whole.gguf", "--plan", "plan.json", "-o", "small.gguf", "--json")
    (place / "plan.json").write_text(json.dumps({"layers": 8, "removed": [1, 5], "strategy": "mine"}))
    made = json.loads(command.said(*words))
    assert (made["kept"], made["output"]) == ([0, 2, 3, 4, 6, 7], "small.gguf")


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "whole.gguf", "--layers", "9", "-o", "small.gguf"),
        ("verify", "whole.gguf", "--stream"),
        ("verify", "whole.gguf", "--device", "cuda"),
        ("prune", "whole.gguf", "--layers", "2", "--repair", "-o", "small.gguf"),
        ("prune", "whole.gguf", "--layers", "2", "-o", "whole.gguf"),
        ("prune", "whole.gguf", "--layers", "2", "-o", "a-00001-of-00002.gguf"),
        ("prune", "whole.gguf", "--memory", "900GB", "-o", "small.gguf"),
        ("prune", ".", "--layers", "2", "-o", "small.gguf"),
        ("prune", "cut.gguf", "--layers", "2", "-o", "small.gguf"),
        ("verify", "whole.gguf", "--base", "whole.gguf"),
        ("verify", "whole.gguf", "--base", "."),
    ],
    ids=" ".join,
)
def test_refused_file_leaves_nothing(words, place, command):
    (place / "cut.gguf").write_bytes((place / "whole.gguf").read_bytes()[:3000])
    command.refused(*words)
