"""Perplexity against transformers' own loss; which model is asked what; and evaluate on the command line."""

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
from shortstack.errors import DataError, InputError
from shortstack.evaluation import EvalConfig, evaluate
from shortstack.evaluation.probes import probes, run_probes
from shortstack.machine.device import Compute
from shortstack.pruning import prune
from zoo import speaking

FP32 = Compute(dtype="float32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.open(speaking(tmp_path_factory.mktemp("speaking") / "model", bos=True))


@pytest.fixture(scope="module")
def pruned(checkpoint, tmp_path_factory):
    return prune(checkpoint, plan(8, layers="3"), tmp_path_factory.mktemp("pruned") / "model")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"layer {number} of many; " for number in range(400)))
    return str(tmp_path / "a.txt")


@pytest.mark.parametrize("source", ["a.txt", "copying"])
def test_perplexity_is_exp_of_transformers_loss(source, checkpoint, text, monkeypatch):
    """Only the repeated words of copying count."""
    monkeypatch.chdir(Path(text).parent)
    found = evaluate(checkpoint, EvalConfig(source, seq_length=96, num_samples=3), compute=FP32).perplexity[source]
    tokens = Tokens.read(source, checkpoint.tokenizer(), samples=3, length=96, held_out=True)
    counted = torch.ones_like(tokens.ids, dtype=torch.bool) if tokens.counted is None else tokens.counted
    labels = tokens.ids.masked_fill(~counted, -100)
    model = checkpoint.model(dtype=torch.float32)
    with torch.no_grad():
        rows = zip(tokens.ids, labels, strict=True)
        losses = torch.stack([model(input_ids=row[None], labels=label[None]).loss for row, label in rows])
        whole = float(model(input_ids=tokens.ids, labels=labels).loss)
    n = counted[:, 1:].sum(1)
    apart = n * (losses - whole) / n.float().mean()  # of a ratio: windows have unlike numbers of tokens
    assert (found.value, found.loss) == (pytest.approx(math.exp(whole), rel=1e-5), pytest.approx(whole, rel=1e-5))
    assert found.loss_stderr == pytest.approx(float(apart.std() / math.sqrt(3)), rel=1e-3)
    assert (found.tokens, found.windows["bos"], found.dtype) == (int(n.sum()), True, "float32")
    assert found.window_losses == pytest.approx((losses * n / n.float().mean()).tolist(), rel=1e-4)


def test_measures_texts_layer_by_layer_where_memory_is_short(checkpoint, text, monkeypatch):
    config = EvalConfig([text, "copying"], seq_length=24, num_samples=90)
    whole, steps = evaluate(checkpoint, config), []
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    monkeypatch.setattr(Checkpoint, "model", lambda *_args, **_options: pytest.fail("it was loaded whole"))
    streamed = evaluate(checkpoint, config, progress=lambda _stage, done, total, **_: steps.append(done / total))
    assert streamed == whole
    assert steps == [done / 8 for done in range(1, 9)] * 2, "a layer after the other, of each text"
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: 1000)
    with pytest.raises(InputError, match="probes"):
        evaluate(checkpoint, EvalConfig(text, seq_length=24, probes=True, probe_items=2))


def test_draws_a_share_of_the_windows_by_seed(checkpoint, text):
    tokenizer = checkpoint.tokenizer()
    every = Tokens.read(text, tokenizer, samples=None, length=24).ids.tolist()

    def drawn(share, seed=0):
        return EvalConfig(text, seq_length=24, num_samples=share).read_texts(tokenizer, seed)[text].ids.tolist()

    tenth, other = drawn("10%"), drawn(0.1, seed=1)
    assert tenth == drawn(0.1) != other
    for some in (tenth, other):
        places = [every.index(window) for window in some]
        assert places == sorted({*places})
        assert len(some) == math.ceil(len(every) / 10)
    assert drawn(1.0) == every


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"perplexity": "none"}, "perplexity"),
        ({"limit": 3}, "limit"),
        ({"data_dir": "."}, "data_dir"),
        ({"probe_items": 10}, "probe_items"),
        ({"seq_length": 1}, "seq_length"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 1.5}, "num_samples"),
        ({"tasks": "piqa,"}, "tasks"),
        ({"tasks": "piqa", "data_dir": "nowhere"}, "data_dir"),
        ({"tasks": "piqa", "include": "nowhere"}, "include"),
        ({"tasks": "piqa", "limit": "101%"}, "limit"),
        ({"tasks": "piqa", "batch_size": 0}, "batch_size"),
    ],
)
def test_config_refuses_what_has_no_effect_or_no_meaning(settings, option):
    with pytest.raises(InputError) as refused:
        EvalConfig(**settings)
    assert refused.value.option == option


def test_config_takes_names_paths_and_shares():
    assert EvalConfig([Path("my.txt"), "pydoc"]).perplexity == ("my.txt", "pydoc")
    assert EvalConfig("a,b.txt").perplexity == ("a,b.txt",), "a file's name may have commas"
    assert EvalConfig(tasks=["reasoning,piqa", "gsm8k"]).tasks == ("gsm8k", "piqa")
    assert EvalConfig(tasks="piqa", limit="10%").limit == 0.1
    with pytest.raises(DataError, match="no end"):
        EvalConfig("copying", num_samples=0.5).check_texts()


def test_probes_are_asked_of_the_evaluated_model(pruned):
    config = EvalConfig("none", probes=True, probe_items=2)
    found = evaluate(pruned, config, compute=Compute(dtype="float32", seed=5))
    expected = run_probes(Decoder.load(pruned, dtype=torch.float32), pruned.tokenizer(), probes(seed=5, n=2))
    assert found.probes == expected
    shares = [probe for probe in expected.values() if probe.metric == "acc"]
    mean, error = sum(probe.value for probe in shares) / 12, math.hypot(*(probe.stderr for probe in shares)) / 12
    assert found.to_dict()["probes_mean"] == {"value": pytest.approx(mean), "stderr": pytest.approx(error)}
    rows = {row.label: row.cells[2].value for row in found.table().rows}
    assert rows == {"repetition": expected["repetition"].value, "generation probes": pytest.approx(mean)}
    assert "With 2 items a probe says little by itself; the JSON has each." in found.table().notes


@pytest.mark.parametrize(
    ("config", "option"), [(EvalConfig("none", probes=True), "probes"), (EvalConfig(seq_length=65), "seq_length")]
)
def test_more_tokens_than_positions_are_refused_before_loading(config, option, tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(speaking(tmp_path / "gpt2", "gpt2", n_positions=64))
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(InputError) as refused:
        evaluate(checkpoint, config)
    assert refused.value.option == option


# The base model


def words(model, text):
    return ["evaluate", model, "--perplexity", text, "--seq-length", 24, "--num-samples", 2]


def test_compares_with_the_base_model_on_record(pruned, checkpoint, text, tmp_path):
    again = prune(pruned, plan(pruned.anatomy.layers, layers="1"), tmp_path / "shorter")
    for made in (pruned, again):
        found = json.loads(ended(*words(made.directory, text), "--json").stdout)
        assert found["base"]["model"] == str(checkpoint.source)
        alone = json.loads(ended(*words(checkpoint.directory, text), "--json").stdout)
        assert found["base"]["perplexity"] == alone["perplexity"]
    assert alone["base"] is None
    assert json.loads(ended(*words(pruned.directory, text), "--no-base", "--json").stdout)["base"] is None


def test_goes_on_without_a_base_model_that_is_gone(text, tmp_path):
    base = speaking(tmp_path / "model")
    prune(Checkpoint.open(base), plan(8, layers="3"), tmp_path / "cut")
    base.rename(tmp_path / "moved")
    found = ended(*words(tmp_path / "cut", text))
    assert (found.exit_code, "Warning" in found.stderr, "--no-base" in found.stderr) == (0, True, True)
    assert ended(*words(tmp_path / "cut", text), "--base", tmp_path / "model").exit_code == 2
    found = ended(*words(tmp_path / "cut", text), "--base", tmp_path / "moved", "--json")
    assert json.loads(found.stdout)["base"]["model"] == str(tmp_path / "moved")


def test_evaluate_compares_as_compare_to_does(checkpoint, pruned, text):
    config = EvalConfig(text, seq_length=24, num_samples=2, probes=True, probe_items=2)
    one, other = evaluate(pruned, config), evaluate(checkpoint, config)
    assert evaluate(pruned, config, base=checkpoint) == one.compare_to(other)


def test_a_base_that_cannot_be_measured_is_refused_before_the_first_model_is(checkpoint, text, tmp_path, monkeypatch):
    bare = shutil.copytree(checkpoint.directory, tmp_path / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    monkeypatch.setattr("shortstack.decoder.Decoder.open", lambda *_, **__: pytest.fail("a model was loaded"))
    assert "tokenizer" in str(invoke(*words(checkpoint.directory, text), "--base", bare).exception)


def test_what_was_measured_is_written_though_the_base_fails(checkpoint, text, tmp_path, monkeypatch):
    opened = Decoder.open

    def once(model, *args, **options):
        if model.directory != checkpoint.directory:
            raise InputError("no memory")
        return opened(model, *args, **options)

    base, output = shutil.copytree(checkpoint.directory, tmp_path / "base"), tmp_path / "result.json"
    monkeypatch.setattr("shortstack.evaluation.evaluator.Decoder.open", once)
    ran = invoke(*words(checkpoint.directory, text), "--base", base, "-o", output)
    assert isinstance(ran.exception, InputError)
    found = json.loads(output.read_text())
    assert (found["perplexity"][text]["tokens"], found["base"]) == (46, None)
    assert "nothing is compared with" in ran.stderr
