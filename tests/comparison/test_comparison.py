"""Rows against the checkpoints they are of, budgets against sizes, advice against rows; reasons where there is no row."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.cli.console import show_result
from shortstack.comparison import Calibration, Comparison, EvaluationSpec, compare, judge_tasks
from shortstack.comparison.baselines import parse_memory
from shortstack.comparison.comparison import ComparisonRow
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import ArchitectureError, CheckpointError, InputError
from shortstack.evaluation import Perplexity, Tasks
from shortstack.evaluation.degeneration import TYPICAL, Collapse, check_collapse
from shortstack.evaluation.perplexity import measure
from shortstack.machine.device import Compute
from shortstack.machine.options import install
from shortstack.planning import Choice, choose
from shortstack.profiling.speed import Load, Speeds
from shortstack.pruning import prune
from zoo import make, speaking

FLOAT = Compute(dtype="float32", device="cpu")
LOAD = Load(prompt=4, new_tokens=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparing")
    (folder / "a.txt").write_text("".join(f"layer {number} of many; " for number in range(400)))
    return folder


def tokens(checkpoint, place, *, length=32, samples=8):
    return Tokens.read(str(place / "a.txt"), checkpoint.tokenizer(), samples=samples, length=length)


def judged_briefly(checkpoint, place, *, length=24, load=LOAD):
    return EvaluationSpec({"a": tokens(checkpoint, place, length=length, samples=2)}, (), load, repeats=1)


@pytest.fixture
def few_words(monkeypatch):
    """To see whether it collapses, a model writes eight tokens after each prompt in place of 64."""
    monkeypatch.setattr("shortstack.evaluation.degeneration.NEW_TOKENS", 8)


@pytest.fixture(scope="module")
def compared(place):
    """A tiny model compared at 60 % of its bytes, with repair, a healed checkpoint and a task."""
    checkpoint = Checkpoint.open(speaking(place / "model", hidden_size=64, intermediate_size=128))
    healed = prune(checkpoint, plan(8, layers="7"), place / "healed")
    some = tokens(checkpoint, place)
    asked = tokens(checkpoint, place, length=20)

    def judge(decoder):
        return {"q": {"metric": "loss", "value": measure(decoder, asked).loss, "stderr": 0.1, "n": 8}}

    judging = EvaluationSpec({"a": tokens(checkpoint, place, length=24)}, [judge], LOAD, repeats=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shortstack.evaluation.degeneration.NEW_TOKENS", 8)
        found = compare(checkpoint, Calibration(some, some, healed=healed), judging, memory="60%", compute=FLOAT)
    return checkpoint, judging, found


def rows(found):
    return {row.name: row for row in found.rows}


def test_every_row_is_there_and_the_best_is_first(compared):
    _, _, found = compared
    names = {"unpruned", "pruned", "pruned, repaired", "healed", "int8", "nf4", "pruned + int8"}
    names |= {"narrowed by activation", "2:4 by Wanda"}
    assert names == set(rows(found))
    losses = [row.perplexity["a"].loss if row.perplexity else math.inf for row in found.rows]
    assert losses == sorted(losses)
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["name"] == found.rows[0].name


def test_a_model_that_is_read_layer_by_layer_is_judged_alike(compared, place, capsys):
    """By perplexity and tasks; what needs weights that can be changed says so, and nothing is timed."""
    checkpoint, judging, found = compared
    some, compute = tokens(checkpoint, place), Compute(dtype="float32", device="cpu", stream=True)
    calibration = Calibration(some, some, healed=str(place / "healed"))  # a name is opened
    streamed = compare(checkpoint, calibration, judging, memory="60%", compute=compute)
    whole, one_by_one = rows(found), rows(streamed)
    changed = {"int8", "nf4", "pruned + int8", "2:4 by Wanda"}
    assert {one_by_one[name].reason for name in changed} == {"its weights are read layer by layer"}
    judged = {name for name, row in one_by_one.items() if not row.reason}
    assert judged == {name for name, row in whole.items() if not row.reason} - changed
    assert {"unpruned", "pruned", "healed", "narrowed by activation"} <= judged
    for name in sorted(judged):
        row = one_by_one[name]
        assert (row.bytes, row.within, row.removed) == (whole[name].bytes, whole[name].within, whole[name].removed)
        assert row.perplexity["a"].loss == pytest.approx(whole[name].perplexity["a"].loss, abs=1e-6)
        assert row.tasks["q"]["value"] == pytest.approx(whole[name].tasks["q"]["value"], abs=1e-6)
        assert (row.speed, row.ratio, row.collapse) == (None, None, None)
    show_result(streamed)
    assert "No speed and no collapse check" in capsys.readouterr().out


def test_a_task_that_is_written_is_refused_where_layers_are_read_one_by_one(compared, monkeypatch):
    checkpoint, _, _ = compared
    monkeypatch.setattr(Tasks, "load_for", lambda *_: [SimpleNamespace(name="gsm8k", generates=True)])
    assert judge_tasks(Tasks("gsm8k"), checkpoint, compute=FLOAT)
    with pytest.raises(InputError, match=r"tasks: expected tasks by likelihood.*found gsm8k"):
        judge_tasks(Tasks("gsm8k"), checkpoint, compute=replace(FLOAT, stream=True))


def test_quantised_weights_are_refused_and_matrices_of_another_form_are_a_row(compared, place, monkeypatch, few_words):
    checkpoint, judging, _ = compared
    quantised = replace(checkpoint, config={**checkpoint.config, "quantization_config": {"quant_method": "bitnet"}})
    some = tokens(checkpoint, place)
    with pytest.raises(CheckpointError, match="compare the unquantised model"):
        compare(quantised, Calibration(some), judging, compute=FLOAT)

    def other_form(*_):
        raise ArchitectureError("0", expected="matrices that are stored by their names", fix="", where="layer 3")

    monkeypatch.setattr("shortstack.comparison.baselines.saved_bytes", other_form)
    found = rows(compare(checkpoint, Calibration(some), replace(judging, judges=()), memory="60%", compute=FLOAT))
    reason = "matrices that are stored by their names, found 0"
    for name in ("int8", "pruned + int8"):
        assert found[name].reason == reason or "needs torchao" in found[name].reason
    assert found["pruned"].perplexity


def test_the_unpruned_row_is_the_model_itself(compared):
    checkpoint, judging, found = compared
    row = rows(found)["unpruned"]
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    assert row.perplexity["a"].loss == measure(decoder, judging.texts["a"]).loss
    assert (row.bytes, row.within, row.ratio) == (checkpoint.weight_bytes, False, None)
    assert row.tasks == judging.judges[0](decoder)
    assert all("q" in row.tasks for row in found.rows if not row.reason)


def test_the_pruned_row_is_the_smallest_cut_that_fits(compared, place, tmp_path):
    """By the metric, which is perplexity here."""
    checkpoint, judging, found = compared
    row = rows(found)["pruned"]
    assert row.bytes <= found.budget_bytes < checkpoint.weight_bytes
    each = checkpoint.sizes.layer_bytes[0]
    assert row.bytes + each > found.budget_bytes
    chosen = choose(checkpoint, Choice("ppl", drop=len(row.removed)), tokens(checkpoint, place), compute=FLOAT)
    assert row.removed == chosen.plan.removed
    pruned = prune(checkpoint, chosen, tmp_path / "pruned")
    assert row.bytes == pruned.weight_bytes
    assert row.perplexity["a"].loss == measure(Decoder.load(pruned, dtype=torch.float32), judging.texts["a"]).loss


def test_quantised_rows_take_the_bytes_they_say(compared):
    for library in ("torchao", "bitsandbytes"):
        pytest.importorskip(library)
    checkpoint, _, found = compared
    matrices = 8 * 64 * (64 + 32 + 32 + 64 + 3 * 128)
    rest = checkpoint.weight_bytes - 4 * matrices
    assert rest + matrices < rows(found)["int8"].bytes < rest + 1.2 * matrices
    assert rest + matrices / 2 < rows(found)["nf4"].bytes < rest + matrices
    both = rows(found)["pruned + int8"]
    if both.removed:
        assert both.bytes <= found.budget_bytes < rows(found)["int8"].bytes
    else:
        assert both.reason == "int8 alone fits the budget"


def test_narrowed_rows_fit_the_healed_one_is_as_it_is_and_masks_are_quality_only(compared):
    checkpoint, _, found = compared
    masked = rows(found)["2:4 by Wanda"]
    assert (masked.within, masked.speed, masked.ratio) == (False, None, None)
    assert "quality only" in masked.note
    narrowed = rows(found)["narrowed by activation"]
    assert narrowed.bytes <= found.budget_bytes
    assert narrowed.within
    healed = rows(found)["healed"]
    assert healed.bytes == checkpoint.weight_bytes - checkpoint.sizes.layer_bytes[0]


def test_a_row_s_speeds_are_over_those_of_the_unpruned_model_each_in_its_column(pruned_alone, compared, monkeypatch):
    """Of models that are timed together the first reads 300 tokens a second and writes 20, the second 100 and 10."""
    known = {1: [(300.0, 20.0)], 2: [(300.0, 20.0), (100.0, 10.0)]}

    def timed(models, load, **_):
        assert [len(model.model.layers) for model in models][1:] in ([], [8]), "the unpruned one is the second"
        return [Speeds(load.batch, read, write, (read,) * 3, (write,) * 3) for read, write in known[len(models)]]

    monkeypatch.setattr("shortstack.comparison.comparison.speeds", timed)
    found = pruned_alone()
    ratios = found["pruned"].ratio
    assert (ratios.prefill.value, ratios.decode.value) == (3, 2)
    table = replace(compared[2], rows=(found["unpruned"], found["pruned"])).table()
    row = next(row for row in table.rows if row.label == "pruned")
    cells = dict(zip((column.label for column in table.columns), row.cells, strict=True))
    assert (cells["decode"].value, cells["prefill"].value) == (2, 3)
    assert found["unpruned"].speed.prefill_tokens_per_s == 300


@pytest.mark.usefixtures("few_words")
def test_every_row_is_checked_for_collapse_against_the_unpruned_model(compared, monkeypatch, capsys):
    checkpoint, _, found = compared
    model = checkpoint.model(dtype=torch.float32)
    unpruned = check_collapse(model, checkpoint.tokenizer())
    assert rows(found)["unpruned"].collapse == unpruned
    for row in found.rows:
        assert (row.collapse is None) == bool(row.reason)
        if row.collapse and row.name != "unpruned":
            assert row.collapse.base == unpruned.fluency
            assert row.collapse.against_base
    looping = replace(unpruned, fluency=replace(unpruned.fluency, repetition=1.0), sample='"la la"').against(unpruned)
    fallen = replace(rows(found)["pruned"], collapse=looping)
    shown = replace(found, rows=(fallen, *(row for row in found.rows if row.name != "pruned")))
    assert shown.warnings[0].startswith("pruned: the model has collapsed (repetition")
    monkeypatch.setenv("COLUMNS", "80")
    show_result(shown)
    lines = capsys.readouterr().out.splitlines()
    collapsed = [column.label for column in shown.table().columns].index("collapsed")
    assert {row.label: row.cells[collapsed].text for row in shown.table().rows}["pruned"] == "yes"
    assert 'pruned: the model has collapsed (repetition). It writes: "la la"' in lines


@pytest.mark.usefixtures("few_words")
@pytest.mark.parametrize("model_type", ["mixtral", "gpt2", "llama"])
def test_what_cannot_be_had_is_a_row_with_its_reason(model_type, place, monkeypatch):
    odd = {"llama": {"intermediate_size": 46}, "gpt2": {"n_positions": 128}}.get(model_type, {})
    checkpoint = Checkpoint.open(speaking(place / model_type, model_type, **odd))
    monkeypatch.setattr("shortstack.decoder.quantisation.importlib.util.find_spec", lambda _: None)
    some = tokens(checkpoint, place, samples=2)
    judging = judged_briefly(checkpoint, place)
    found = rows(compare(checkpoint, Calibration(some, metric="reverse"), judging, compute=FLOAT))
    assert found["pruned"].removed == tuple(range(8 - len(found["pruned"].removed), 8))
    other = {"mixtral": "several experts", "gpt2": "Conv1D"}.get(model_type)
    assert (other or f"torchao; {install('quant')}") in found["int8"].reason
    assert (other or "bitsandbytes") in found["nf4"].reason
    assert found["pruned + int8"].reason == found["int8"].reason
    assert ("one MLP" in found["narrowed by activation"].reason) is (model_type != "llama")
    assert (other or "46 inputs, which do not divide by 4") in found["2:4 by Wanda"].reason
    assert all(found[name].perplexity == {} for name in ("int8", "nf4", "pruned + int8"))


@pytest.mark.parametrize("other", ["another tokenizer", "fewer embeddings"])
def test_a_healed_model_that_reads_other_tokens_is_refused_before_any_is_loaded(other, place, tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model"))
    healed = speaking(tmp_path / "healed")
    if other == "another tokenizer":
        mine = checkpoint.tokenizer()
        mine.add_tokens(["<of its own>"])
        mine.save_pretrained(healed)
    else:
        make("llama", healed, vocab_size=100)
    some = Calibration(tokens(checkpoint, place, samples=2), healed=Checkpoint.open(healed))
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(InputError, match="an embedding for each of its 293 tokens") as refused:
        compare(checkpoint, some, judged_briefly(checkpoint, place))
    assert refused.value.option == "healed"
    assert refused.value.found in ("another tokenizer, of 294 tokens", "100 embeddings")
    assert ("another" in refused.value.found) == ("another" in other)


def test_a_model_with_too_few_positions_for_a_row_is_refused_before_it_is_loaded(place, tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(speaking(tmp_path / "gpt2", "gpt2"))
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("was read"))
    some = Calibration(tokens(checkpoint, place, samples=2))
    for length, load, where in (
        (65, LOAD, "length"),
        (24, Load(prompt=60, new_tokens=4), "prompt"),
        (24, LOAD, "compare"),
    ):
        with pytest.raises(InputError, match="at most 64 tokens") as refused:
            compare(checkpoint, some, judged_briefly(checkpoint, place, length=length, load=load))
        assert refused.value.place(refused.value.option) == where


def test_memory_is_a_share_or_a_size_above_what_no_baseline_makes_smaller():
    assert [parse_memory(memory, 1000) for memory in ("50%", "12.5%", " 75% ", "0.25kB", "300 B")] == [
        *(500, 125, 750),
        *(250, 300),
    ]
    assert parse_memory("26%", 1000, least=250) == 260
    with pytest.raises(InputError, match=r"25% of the bytes"):
        parse_memory("25%", 1000, least=250)
    for memory in ("", "50", "0%", "100%", "-5%", "half", "nan%", "1e1%", "%", "1KB", "0B", "500"):
        with pytest.raises(InputError, match="memory"):
            parse_memory(memory, 1000)


def row(name, loss, *, within=True, removed=(), repetition=0.0):
    found = Perplexity(math.exp(loss), 10, loss, 0.1, {}, "float32")
    wrote = Collapse(replace(TYPICAL, repetition=repetition), '"so"')
    return ComparisonRow(name, "", "", removed, 100, within, {"pydoc": found}, collapse=wrote)


def of(*rows):
    return Comparison("m", "50%", 10**6, rows, {}, "float32", "cpu", 1)


UNPRUNED = row("unpruned", 2.0, within=False)


def test_the_cut_is_that_of_the_plainly_pruned_model_if_it_fits():
    eight = row("pruned + int8", 2.5, removed=(2,))
    for within, expected in ((True, (1, 4)), (False, ())):
        assert of(eight, row("pruned", 3.0, removed=(1, 4), within=within)).cut == expected


def test_advice_follows_the_rows():
    four, cut = row("nf4", 2.1), row("pruned", 3.0, removed=(1,))
    assert of(UNPRUNED, four, cut).advice == (
        "Within 1.0 MB, nf4 keeps the most quality: perplexity 8.166 on pydoc (7.389 unpruned). The best with fewer layers "
        "is pruned: perplexity 20.09 on pydoc (7.389 unpruned)."
    )
    assert "fewer layers" not in of(UNPRUNED, cut).advice
    task = {"metric": "acc", "stderr": 0.1, "n": 10}
    before, after = (
        replace(row, tasks={"piqa": {**task, "value": value}}) for row, value in ((UNPRUNED, 0.7), (cut, 0.6))
    )
    assert "(7.389 unpruned), piqa 0.600 (0.700 unpruned)." in of(before, after).advice
    assert of(UNPRUNED, replace(four, within=False)).advice == "Nothing here fits 1.0 MB."


def test_what_has_collapsed_is_not_advised_while_another_has_not():
    cut = row("pruned", 2.5, removed=(1,), repetition=1.0)
    said = of(UNPRUNED, cut, row("thin", 4.0)).advice
    assert said.startswith("Within 1.0 MB, thin keeps the most quality")
    assert "The best with fewer layers is pruned (collapsed)" in said
    assert of(UNPRUNED, cut).advice.startswith("Within 1.0 MB, pruned (collapsed) keeps the most quality")
