"""Cached states of a model are named by all that it depends on: edited files beside the weights name other entries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.data import Example
from shortstack.decoder.own_text import Writer
from shortstack.healing import Objective
from shortstack.healing.frozen import Freezer
from shortstack.machine.device import Compute
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")
EXAMPLES = [Example((3, 4, 5, 6), (True,) * 4)]


def names(folder: Path) -> dict[str, str]:
    """The entries of the frozen states, of a teacher's predictions and of the model's own texts."""
    checkpoint = Checkpoint.open(folder)
    objective = Objective("distill")
    frozen = Freezer(checkpoint, torch.float32, "cpu", objective, checkpoint).planned(EXAMPLES, 2)
    own = Writer(checkpoint, Compute(dtype="float32", device="cpu")).key
    return {"states": frozen.states.path.name, "teacher": frozen.teacher.path.name, "own texts": own}


def test_an_edited_file_or_other_libraries_name_other_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = speaking(tmp_path / "m")
    before = names(folder)
    assert names(folder) == before
    for name, field, value in (
        ("config.json", "rope_theta", 5e5),
        ("tokenizer_config.json", "model_max_length", 77),
        ("generation_config.json", "temperature", 0.5),
    ):
        text = (folder / name).read_text()
        (folder / name).write_text(json.dumps({**json.loads(text), field: value}))
        assert not set(before.values()) & set(names(folder).values()), name
        (folder / name).write_text(text)
    monkeypatch.setattr("shortstack.machine.cache.library_versions", lambda: {"torch": "99"})
    assert not set(before.values()) & set(names(folder).values())
