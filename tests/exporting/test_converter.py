"""export to GGUF: the converter is llama.cpp's, and what llama.cpp then computes is what transformers does."""

from __future__ import annotations

import json
import re
import stat
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from command import ended
from gguf_models import MAKERS, token_losses
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.gguf_file import read_gguf
from shortstack.errors import ArchitectureError, CheckpointError, InputError, OutputError
from shortstack.exporting import export_gguf, ollama_modelfile
from shortstack.pruning import prune
from zoo import make, speaking, tiny
from zoo import tokenizer as make_tokenizer

CONVERTER = Path(sys.prefix) / "converter" / "convert_hf_to_gguf.py"


@pytest.mark.skipif(not CONVERTER.is_file(), reason="`make test` installs the converter")
def test_llama_cpp_reads_it_with_the_same_loss(tmp_path, monkeypatch):
    """Losses of tokens, near 17 of such a cut: by llama.cpp of the file, and by transformers in float32."""
    pytest.importorskip("xllamacpp")
    pruned = prune(Checkpoint.open("demo"), plan(30, layers="2-26,28"), tmp_path / "cut")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    words = ("--gguf", "small.gguf", "--gguf-type", "f32", "--ollama", "--converter", CONVERTER, "--json")
    made = json.loads(ended("export", pruned.directory, *words).stdout)
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8").partition("## JSON")[2]
    assert {key.partition(".")[0] for key in re.findall(r"`([a-z_.]+)`(?=[,| ])", page)} == made.keys()
    assert (made["gguf"], made["modelfile"]) == ("small.gguf", "small.Modelfile")
    assert Path("small.Modelfile").read_text() == 'FROM ./small.gguf\nPARAMETER stop "<|im_end|>"\n'
    assert {path.name for path in Path().iterdir()} == {"small.gguf", "small.Modelfile"}
    entries = read_gguf(Path("small.gguf")).entries
    assert entries["llama.block_count"].value == 4
    assert "<|im_start|>" in entries["tokenizer.chat_template"].value
    ids = pruned.tokenizer()("The capital of France is Paris.").input_ids
    with torch.no_grad():
        logits = pruned.model(dtype=torch.float32)(torch.tensor([ids])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    found = torch.tensor(token_losses("small.gguf", ids, vocabulary=pruned.vocabulary))
    assert (found - expected).abs().mean() < 0.005


def program(folder, text):
    """A command that stands for the converter."""
    path = folder / "converter"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def copying(made):
    return f"import shutil, sys; shutil.copy({str(made)!r}, sys.argv[sys.argv.index('--outfile') + 1])"


def test_an_error_of_the_converter_is_quoted_and_leaves_nothing(tmp_path):
    failing = program(tmp_path, "import sys; print('LlamaForCausalLM is not supported', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ArchitectureError, match="LlamaForCausalLM is not supported"):
        export_gguf(Checkpoint.open(tiny("llama")), tmp_path / "out" / "small.gguf", converter=failing)
    assert not list((tmp_path / "out").glob("*"))


def test_a_file_with_other_layers_than_the_checkpoint_is_refused(tmp_path):
    converter = program(tmp_path, copying(MAKERS["llama"](tmp_path / "made.gguf", layers=7)))
    with pytest.raises(CheckpointError, match="7 layers"):
        export_gguf(Checkpoint.open(tiny("llama")), tmp_path / "small.gguf", converter=converter)
    assert not (tmp_path / "small.gguf").exists()


@pytest.mark.parametrize(("layers", "exact"), [("1", False), ("0-3", True)])
def test_a_cut_whose_layers_llama_cpp_would_take_for_others_is_refused(layers, exact, tmp_path):
    """SmolLM3 has no positions in every fourth layer: transformers has a list of them, llama.cpp the layer's number."""
    source = Checkpoint.open(make("smollm3", tmp_path / "source", no_rope_layer_interval=4))
    cut = prune(source, plan(8, layers=layers), tmp_path / "cut")
    made = MAKERS["smollm3"](tmp_path / "made.gguf", layers=cut.anatomy.layers)
    converter, small = program(tmp_path, copying(made)), tmp_path / "small.gguf"
    with nullcontext() if exact else pytest.raises(ArchitectureError, match="layer 3 is now layer 2"):
        export_gguf(cut, small, converter=converter)
    assert small.exists() is exact


LOADING = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[-1])
if "auto_map" in json.loads((folder / "tokenizer_config.json").read_text()):  # as transformers does where it may
    exec((folder / "own.py").read_text())
vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
assert vocabulary["auto_map"] == 383, "a token of that name stays"
"""


def test_code_of_the_checkpoint_runs_only_where_it_is_trusted(tmp_path):
    """The tokenizer names a class in a Python file beside it, which leaves a mark when it is run."""
    folder, mark, made = speaking(tmp_path / "m"), tmp_path / "ran", MAKERS["llama"](tmp_path / "made.gguf", layers=8)
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    settings, vocabulary = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("tokenizer_config", "tokenizer")
    )
    vocabulary["model"]["vocab"]["auto_map"] = 383
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "auto_map": {"AutoTokenizer": [None, "own.Own"]}})
    )
    converter = program(tmp_path, LOADING + copying(made))
    export_gguf(Checkpoint.open(folder), tmp_path / "plain.gguf", converter=converter)
    assert (tmp_path / "plain.gguf").read_bytes() == made.read_bytes()
    assert not mark.exists()
    export_gguf(Checkpoint.open(folder, trust_remote_code=True), tmp_path / "trusted.gguf", converter=converter)
    assert mark.exists()
    converter = program(tmp_path, "import sys; print(sys.argv[-1].rpartition('/')[2]); sys.exit(2)")
    with pytest.raises(ArchitectureError, match=r"failed: m;.* trust_remote_code"):
        export_gguf(Checkpoint.open(folder), tmp_path / "small.gguf", converter=converter)


def test_bad_options_are_refused_before_work(tmp_path, monkeypatch):
    checkpoint, out = Checkpoint.open(tiny("llama")), tmp_path / "small.gguf"
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "there.gguf").touch()
    for output, more, kind, option in (
        (out, {"gguf_type": "q4_k_m"}, InputError, "gguf_type"),
        (out, {"converter": None}, InputError, "converter"),
        (out, {"converter": "nowhere.py"}, InputError, "converter"),
        (out.with_suffix(""), {}, InputError, "gguf"),
        (tmp_path / "there.gguf", {}, OutputError, ""),
    ):
        with pytest.raises(kind) as error:
            export_gguf(checkpoint, output, **{"converter": sys.executable, **more})
        assert error.value.option == option


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "--gguf FILE"),
        (("--push-to-hub", "a/b", "--ollama"), "--ollama"),
        (("--push-to-hub", "../x", "--trust-remote-code"), "--push-to-hub"),  # the check before it may run that code
        (("--gguf", "small.gguf", "--private"), "--private"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, expected, tmp_path, monkeypatch):
    pruned = prune(Checkpoint.open(tiny("llama")), plan(8, layers="3"), tmp_path / "cut")
    monkeypatch.chdir(tmp_path)
    run = ended("export", pruned.directory, *words)
    assert run.exit_code == 2
    assert expected in run.stderr


@pytest.mark.parametrize(("end", "line"), [("</s>", 'PARAMETER stop "</s>"\n'), (None, ""), ('x\nADAPTER "/etc', None)])
def test_a_modelfile_names_the_file_and_the_end_of_an_answer(end, line, tmp_path):
    folder, tokenizer = speaking(tmp_path / "model"), make_tokenizer()
    tokenizer.eos_token = end
    tokenizer.save_pretrained(folder)
    with nullcontext() if line is not None else pytest.raises(CheckpointError):
        assert ollama_modelfile(folder, "somewhere/small.gguf") == f"FROM ./small.gguf\n{line}"
