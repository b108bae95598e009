"""Perplexity against transformers' own loss; the arithmetic chosen; what is said of the tokens and of what is written."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from command import ended, invoke
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import DataError, InputError
from shortstack.evaluation import EvaluationText, GenerationChecks, evaluate
from shortstack.evaluation.degeneration import check_collapse
from shortstack.evaluation.probes import probes, run_probes
from shortstack.machine.device import Compute
from shortstack.pruning import prune
from zoo import speaking, tiny

NO_TEXT = EvaluationText(())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.open(speaking(tmp_path_factory.mktemp("speaking") / "model", bos=True))


@pytest.mark.parametrize("source", ["a.txt", "copying"])
def test_perplexity_is_exp_of_the_mean_loss_transformers_computes(source, checkpoint, tmp_path, monkeypatch):
    """Of copying what was said before counts, and it is not what calibrates."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("".join(f"layer {number} of many; " for number in range(120)))
    found = evaluate(checkpoint, text=EvaluationText([source], 96, 3), compute=Compute(dtype="float32"))
    text = found.perplexity[source]
    tokens = Tokens.read(source, checkpoint.tokenizer(), samples=3, length=96, held_out=True)
    counted = torch.ones_like(tokens.ids, dtype=torch.bool) if tokens.counted is None else tokens.counted
    labels = tokens.ids.masked_fill(~counted, -100)  # what transformers' loss leaves out
    model = checkpoint.model(dtype=torch.float32)
    with torch.no_grad():
        losses = torch.stack(
            [model(input_ids=row[None], labels=of[None]).loss for row, of in zip(tokens.ids, labels, strict=True)]
        )
        whole = model(input_ids=tokens.ids, labels=labels).loss
    assert (text.value, text.loss) == (pytest.approx(math.exp(whole), rel=1e-5), pytest.approx(float(whole), rel=1e-5))
    tokens_of = counted[:, 1:].sum(1)
    apart = (
        tokens_of * (losses - whole) / tokens_of.float().mean()
    )  # of a ratio, as windows have unlike numbers of tokens
    assert text.loss_stderr == pytest.approx(float(apart.std() / math.sqrt(3)), rel=1e-3)
    assert text.tokens == int(counted[:, 1:].sum())
    assert math.fsum(text.window_losses) / 3 == pytest.approx(text.loss)
    assert (text.windows["bos"], text.dtype) == (True, "float32")
    if source == "copying":
        calibrating = Tokens.read(source, checkpoint.tokenizer(), samples=3, length=96)
        assert not set(map(tuple, calibrating.ids.tolist())) & set(map(tuple, tokens.ids.tolist()))
    else:
        assert text.window_losses == pytest.approx(losses.tolist(), rel=1e-4)


def test_texts_are_measured_on_weights_read_layer_by_layer(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("the walk visits every layer once " * 400)
    text = EvaluationText([str(tmp_path / "a.txt"), "copying"], 24, samples=90)
    whole = evaluate(checkpoint, text=text)
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    monkeypatch.setattr(Checkpoint, "model", lambda *_args, **_options: pytest.fail("it was loaded whole"))
    told = []
    streamed = evaluate(checkpoint, text=text, progress=lambda _stage, done, total, **_: told.append(done / total))
    assert streamed == whole
    assert told == [done / 8 for done in range(1, 9)] * 2, "a layer after the other, of each text"


def test_a_collapse_check_that_nobody_asked_for_is_left_out_where_the_model_does_not_fit(pruned, text, monkeypatch):
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    asked = EvaluationText([text], 24, samples=2)
    with pytest.warns(UserWarning, match="the collapse check is skipped, since the model does not fit"):
        found = evaluate(pruned, text=asked)
    assert found.collapse is None
    assert found.perplexity[text].tokens
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: 1000)
    with pytest.raises(
        InputError, match=r"for its weights.*evaluate without generation: with collapse_check turned off"
    ):
        evaluate(pruned, text=asked, generation=GenerationChecks(collapse_check=True))


def test_a_text_may_be_named_as_a_path():
    assert EvaluationText(Path("my.txt")).sources == EvaluationText([Path("my.txt")]).sources == ("my.txt",)


def test_a_share_of_the_windows_is_drawn_by_seed_from_all(checkpoint, tmp_path):
    source, tokenizer = str(tmp_path / "a.txt"), checkpoint.tokenizer()
    (tmp_path / "a.txt").write_text("".join(f"layer {number} of many; " for number in range(400)))
    every = Tokens.read(source, tokenizer, samples=None, length=24).ids.tolist()
    draws = [EvaluationText([source], 24, 0.1).read(tokenizer, seed)[source].ids.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    for some in draws:
        assert len(some) == math.ceil(len(every) / 10)
        places = [every.index(window) for window in some]
        assert places == sorted(set(places))
    assert EvaluationText([source], 24, 1.0).read(tokenizer, 0)[source].ids.tolist() == every
    with pytest.raises(DataError, match="no end"):
        EvaluationText("copying", samples=0.5).read(tokenizer, 0)


def test_auto_arithmetic_is_bf16_only_where_checkpoint_and_device_have_it():
    checkpoint = Checkpoint.open(tiny("llama"))  # stored in float32
    assert arithmetic("auto", checkpoint, "cpu") is torch.float32
    assert arithmetic("bfloat16", checkpoint, "cpu") is torch.bfloat16


@pytest.fixture(scope="module")
def pruned(checkpoint, tmp_path_factory):
    return prune(checkpoint, plan(8, layers="3"), tmp_path_factory.mktemp("pruned") / "model")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text("the walk visits every layer once " * 40)
    return str(tmp_path / "a.txt")


def test_what_shortstack_cut_is_checked_for_collapse_unless_told_otherwise(checkpoint, pruned, text):
    def checked(model, **options):
        generation, compute = GenerationChecks(**options), Compute(dtype="float32")
        return evaluate(
            model, text=EvaluationText([text], 24, samples=2), generation=generation, compute=compute
        ).collapse

    assert checked(checkpoint) is None
    assert checked(pruned, collapse_check=False) is None
    alone = check_collapse(pruned.model(dtype=torch.float32), pruned.tokenizer())
    assert checked(pruned) == alone
    assert checked(checkpoint, collapse_check=True).fluency != alone.fluency


def test_probes_are_asked_of_the_evaluated_model(pruned, text):
    generation, compute = GenerationChecks(probes=True, probe_items=2), Compute(dtype="float32", seed=5)
    found = evaluate(pruned, text=EvaluationText([text], 24, samples=2), generation=generation, compute=compute)
    expected = run_probes(Decoder.load(pruned, dtype=torch.float32), pruned.tokenizer(), probes(seed=5, n=2))
    assert found.probes == expected
    row = next(row for row in found.table().rows if row.label == "generation probes")
    value = row.cells[2]
    assert value.value == pytest.approx(sum(probe.accuracy.value for probe in expected.values()) / len(expected))
    assert value.stderr == pytest.approx(
        sum(probe.accuracy.stderr**2 for probe in expected.values()) ** 0.5 / len(expected)
    )
    assert found.to_dict()["probes_mean"] == (value.value, value.stderr)
    assert "With 2 items a probe says little by itself; the JSON has each." in found.table().notes
    said = found.to_dict()["probes"]["arithmetic-1"]
    assert (said["n"], said["chance"]) == (2, pytest.approx(1 / 19))


def test_probes_are_asked_of_the_evaluated_model_itself(pruned, monkeypatch):
    """A random model has every item wrong, whichever it is."""
    asked = []

    def noted(decoder, _tokenizer, items, **_):
        asked.append((len(decoder.layers), items))
        return {}

    monkeypatch.setattr("shortstack.evaluation.evaluator.run_probes", noted)
    generation = GenerationChecks(probes=True, probe_items=2, collapse_check=False)
    evaluate(pruned, text=EvaluationText([]), generation=generation, compute=Compute(dtype="float32", seed=5))
    assert asked == [(pruned.anatomy.layers, probes(seed=5, n=2))]


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ({"generation": GenerationChecks(probes=True, probe_items=2)}, "probes"),
        ({"generation": GenerationChecks(collapse_check=True)}, "collapse_check"),
        ({"text": EvaluationText("pydoc", length=65)}, "length"),
    ],
)
def test_more_tokens_than_positions_are_refused_before_the_model_is_loaded(asked, option, tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(speaking(tmp_path / "gpt2", "gpt2", n_positions=64))
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(InputError, match="at most 64 tokens, for which GPT2LMHeadModel has positions") as refused:
        evaluate(checkpoint, **{"text": NO_TEXT, **asked})
    assert refused.value.option == option


def test_a_table_without_the_unpruned_model_says_how_to_have_it(pruned, checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(text).parent)  # a long name would fold the table
    words = ["evaluate", "--perplexity", Path(text).name, "--length", 24, "--samples", 2, "--no-collapse-check"]
    again = prune(pruned, plan(pruned.anatomy.layers, layers="1"), tmp_path / "shorter")
    assert again.made_from == pruned.made_from == str(checkpoint.source)
    assert checkpoint.made_from is None
    for made in (pruned, again):
        assert f"Add --against {checkpoint.source} to compare" in ended(*words, made.directory).stdout
    beside = ended(*words, pruned.directory, "--against", checkpoint.directory)
    assert (beside.exit_code, "unpruned" in beside.stdout) == (0, True)
    assert "--against" not in beside.stdout + ended(*words, checkpoint.directory).stdout


def test_a_collapse_is_in_the_table_and_at_the_end(pruned, text, monkeypatch):
    def loop(_model, prompts, rooms, **_):
        return [[40, 41] * (room // 2) for room in rooms]

    monkeypatch.setattr("shortstack.evaluation.degeneration.generate", loop)
    words = ["evaluate", pruned.directory, "--perplexity", text, "--length", 24, "--samples", 2]
    said = ended(*words)
    sample = json.dumps("The city lies on a river, and" + pruned.tokenizer().decode([40, 41] * 32))[:60]
    assert f"It writes: {sample}" in said.stdout
    assert said.stderr.index("Warning: the model has collapsed (repetition,") < said.stderr.index("Next:")
    assert sample in said.stderr
    said = ended(*words, "--json")
    assert json.loads(said.stdout)["collapse"]["fallen"] == ["repetition", "distinct_1", "distinct_2", "entropy"]
    assert "Warning: the model has collapsed" in said.stderr


def test_nothing_to_measure_says_what_there_is(checkpoint):
    with pytest.raises(InputError, match="such as pydoc; or add tasks, such as paper, or probes"):
        evaluate(checkpoint, text=NO_TEXT)
    with pytest.raises(InputError, match=r"probe_items: .* To fix it: add probes"):
        GenerationChecks(probe_items=10)
    found = evaluate(checkpoint, text=NO_TEXT, generation=GenerationChecks(collapse_check=True))
    assert found.collapse == check_collapse(checkpoint.model(dtype=torch.float32), checkpoint.tokenizer())


def test_a_base_that_cannot_be_measured_is_refused_before_the_first_model_is(checkpoint, text, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint.directory, bare)
    for path in bare.glob("*token*"):
        path.unlink()
    monkeypatch.setattr("shortstack.decoder.Decoder.open", lambda *_, **__: pytest.fail("a model was loaded"))
    words = ["evaluate", str(checkpoint.directory), "--perplexity", str(text), "--length", "24", "--against", str(bare)]
    assert "tokenizer" in str(invoke(*words).exception)


def test_what_was_measured_is_written_though_the_base_fails(checkpoint, text, tmp_path, monkeypatch):
    opened = Decoder.open

    def once(model, *args, **options):
        if model.directory != checkpoint.directory:
            raise InputError("none", expected="room", fix="free some", where="memory")
        return opened(model, *args, **options)

    base, output = tmp_path / "base", tmp_path / "result.json"
    shutil.copytree(checkpoint.directory, base)
    monkeypatch.setattr("shortstack.evaluation.evaluator.Decoder.open", once)
    words = ["evaluate", str(checkpoint.directory), "--perplexity", str(text), "--length", "24", "--samples", "2"]
    words += ["--against", str(base), "-o", str(output)]
    said = invoke(*words)
    assert isinstance(said.exception, InputError)
    found = json.loads(output.read_text())
    assert found["perplexity"][str(text)]["tokens"] == 46
    assert found["base"] is None
    assert "perplexity" in said.stdout
    assert "nothing is compared with" in said.stderr
