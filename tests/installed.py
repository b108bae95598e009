"""Run by `make test-wheel` in an environment that has the wheel and nothing of this folder: files, types, a shrink."""

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
    out = Path(folder) / "short"
    command = Path(sys.executable).with_name("shortstack")
    subprocess.run([command, "shrink", "demo", "--drop", "4", "--minutes", "6", "-o", out], check=True)
    steps = json.loads((out / "shrink.json").read_text())["steps"]
    last = "healed" if "evaluate_healed" in steps else "pruned"  # a slow machine has no time to heal
    before, after = (steps[f"evaluate_{role}"]["perplexity"]["pydoc"]["value"] for role in ("base", last))
    assert before < after < 2.5 * before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == 26
print("the wheel is complete, and it shrinks the demo's model")
