"""Run by `make test-wheel` in an environment that has the wheel and nothing of this folder: files, types, the demo."""

import json
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import files, metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import shortstack

installed = {path.as_posix() for path in files("shortstack") or ()}
assert "site-packages" in shortstack.__file__, shortstack.__file__
assert "shortstack/py.typed" in installed
assert any(path.endswith("licenses/LICENSE") for path in installed)
assert metadata("shortstack")["License-Expression"] == "Apache-2.0"
with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "demo-out"
    command = Path(sys.executable).with_name("shortstack")
    subprocess.run([command, "demo", "--minutes", "1", "-o", out], check=True)
    demo = json.loads((out / "demo.json").read_text())
    base, four, eight = (row["perplexity"] for row in demo["rows"])
    assert base < four < eight < 2.5 * base
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(out / "minus-8", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == demo["rows"][-1]["layers"] == 22
print("the wheel is complete, and its demo runs")
