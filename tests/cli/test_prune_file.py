"""prune and verify of .gguf files, by the command line."""

import json

import pytest

from gguf_models import MAKERS
from shortstack.checkpoint.gguf_file import read_gguf


@pytest.fixture
def place(tmp_path, command):
    MAKERS["llama"](tmp_path / "whole.gguf")
    return tmp_path


def test_layers_are_named_and_the_file_is_verified(place, command):
    words = ("prune", "whole.gguf", "--layers", "2-3", "-o", "deep/small.gguf", "--json")
    made = json.loads(command.said(*words))
    model = read_gguf(place / "deep" / "small.gguf")
    assert (made["kept"], made["output"]) == ([0, 1, 4, 5, 6, 7], "deep/small.gguf")
    assert made["bytes"]["after"] == sum(len(tensor.data) for tensor in model.tensors)
    verify = ("verify", "deep/small.gguf", "--against", "whole.gguf")
    assert all(check["ok"] for check in json.loads(command.said(*verify, "--json"))["checks"].values())
    content = bytearray((place / "deep" / "small.gguf").read_bytes())
    content[-100] ^= 1
    (place / "deep" / "small.gguf").write_bytes(content)
    code, out, _ = command(*verify)
    assert code == 1
    assert "FAILED" in out


def test_a_plan_is_applied(place, command):
    words = ("prune", "whole.gguf", "--plan", "plan.json", "-o", "small.gguf", "--json")
    (place / "plan.json").write_text(json.dumps({"layers": 8, "removed": [1, 5], "strategy": "mine"}))
    made = json.loads(command.said(*words))
    assert (made["kept"], made["output"]) == ([0, 2, 3, 4, 6, 7], "small.gguf")


def test_a_dry_run_counts_what_stays_and_writes_no_model(place, command):
    file = read_gguf(place / "whole.gguf")
    kept = sum(len(tensor.data) for tensor in file.tensors if tensor.block not in (2, 3))
    foreseen = ("prune", "whole.gguf", "-o", "small.gguf", "--dry-run", "--json")
    named = json.loads(command.said(*foreseen, "--layers", "2-3"))
    assert (named["removed"], named["disk_bytes"]) == ([2, 3], kept)
    assert not (place.with_name(f"{place.name}-cache") / "gguf").exists(), "nothing is dequantised to copy bytes"
    chosen = json.loads(command.said(*foreseen, "--drop", "2", "--text", "pydoc", "--samples", "2"))
    assert (chosen["remove"], chosen["removed"], chosen["disk_bytes"]) == (2, None, kept)
    assert sorted(path.name for path in place.glob("*.gguf")) == ["whole.gguf"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("prune", "whole.gguf", "--layers", "9", "-o", "small.gguf"), "layers from 0 to 7"),
        (("verify", "whole.gguf", "--stream"), "no --stream: it has no effect here"),
        (("verify", "whole.gguf", "--device", "cuda"), "no --device: it has no effect here"),
        (("prune", "whole.gguf", "--layers", "2", "--repair", "-o", "small.gguf"), "write a directory"),
        (("prune", "whole.gguf", "--layers", "2", "-o", "whole.gguf"), "the model itself"),
        (("prune", "whole.gguf", "--layers", "2", "-o", "a-00001-of-00002.gguf"), "with llama-gguf-split"),
        (("prune", "whole.gguf", "--layers", "9", "-o", "small.gguf", "--dry-run"), "layers from 0 to 7"),
        (("prune", "whole.gguf", "--memory", "900GB", "-o", "small.gguf"), "--memory"),
        (("prune", ".", "--layers", "2", "-o", "small.gguf"), "GGUF is cut from GGUF"),
        (("prune", "cut.gguf", "--layers", "2", "-o", "small.gguf"), "a truncated file of 3,000 bytes"),
        (("verify", "whole.gguf", "--against", "whole.gguf"), "shortstack.kept_layers"),
        (("verify", "whole.gguf", "--against", "."), "--against"),
    ],
)
def test_bad_input_is_said_and_leaves_nothing(words, expected, place, command):
    (place / "cut.gguf").write_bytes((place / "whole.gguf").read_bytes()[:3000])
    assert expected in command.refused(*words)
