"""Checkpoints made to do harm: no code of theirs runs, and nothing outside of their folder is read, written or shown raw."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from shortstack.checkpoint import Checkpoint
from shortstack.cli import app
from shortstack.errors import ShortstackError
from shortstack.planning import plan
from shortstack.pruning import prune, verify
from shortstack.report import Report
from shortstack.study import run_study
from studies import inline
from zoo import speaking

NAME = '<img src=x onerror="alert(1)">{{ 7 * 7 }}'


class Harm:
    """A pickle that makes a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["HARM"],)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    return speaking(tmp_path / "m")


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_checkpoints_code_does_not_run(model: Path, tmp_path: Path) -> None:
    (model / "own.py").write_text("import os\nos.mkdir(os.environ['HARM'])\n")
    edit(model / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    for words in (
        ("score", str(model), "--metric", "bi", "--samples", "2", "--length", "16", "--text", "pydoc"),
        ("profile", str(model), "--no-speed"),
    ):
        CliRunner().invoke(app, list(words))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "model.safetensors", "optimizer.pt"])
def test_pickles_are_not_opened(name: str, model: Path, tmp_path: Path) -> None:
    if name == "pytorch_model.bin":
        (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Harm()))
    try:
        Checkpoint.open(model).model(dtype=torch.float32)
    except ShortstackError:
        assert name in ("pytorch_model.bin", "model.safetensors")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "name", ["../m2/model.safetensors", "/etc/passwd", "..", "a\nb.safetensors", "\x00.safetensors"]
)
def test_names_in_an_index_stay_in_the_folder(name: str, model: Path) -> None:
    shutil.copytree(model, model.with_name("m2"))
    tensors = Checkpoint.open(model).tensors
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ShortstackError):
        Checkpoint.open(model)


def test_names_in_a_record_stay_in_the_folder(model: Path, tmp_path: Path) -> None:
    prune(Checkpoint.open(model), plan(8, drop=1), tmp_path / "cut")
    record = json.loads((tmp_path / "cut" / "shortstack.json").read_text())
    size = Path("/etc/passwd").stat().st_size
    record["files"]["../../../../etc/passwd"] = {"size": size, "sha256": "0" * 64}
    (tmp_path / "cut" / "shortstack.json").write_text(json.dumps(record))
    with pytest.raises(ShortstackError, match="files of its own folder"):
        verify(Checkpoint.open(tmp_path / "cut"))


def test_a_template_that_never_ends_or_reaches_out_is_no_code(model: Path, tmp_path: Path) -> None:
    reaching = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages.__init__.__globals__ }}"
    (model / "chat_template.jinja").write_text(reaching)
    data = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(30)))
    words = ["heal", str(model), "--data", str(data), "--max-length", "32", "-o", str(tmp_path / "out"), "-q"]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code != 0
    assert not (tmp_path / "out").exists()
    assert isinstance(ran.exception, ShortstackError | SystemExit), repr(ran.exception)


def test_names_are_text_wherever_they_are_shown(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / NAME.replace("/", "_"))
    study = f"title: {json.dumps(NAME)}\nmodels: [{json.dumps(str(tmp_path / NAME))}]\nmetrics: [reverse]\ndrop: [2]\n"
    study += "evaluation: {perplexity: [pydoc], samples: 2, length: 16, collapse: false}\n"
    (tmp_path / "study.yaml").write_text(study)
    run_study(tmp_path / "study.yaml", tmp_path / "runs", launcher=inline)
    page = Report.of(tmp_path / "runs").html()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert "{{ 7 * 7 }}" in page, "shown as it is, and not computed"
