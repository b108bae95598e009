"""What --dry-run says of a verb, beside what the verb then does; nothing is written by it."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import architectures
import psutil
import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.cli import main
from shortstack.cli.dry_run import lacking
from shortstack.cli.shrink import show_foreseen
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.evaluation import EvaluationText, GenerationChecks, Tasks
from shortstack.machine.device import Compute
from shortstack.planning import plan
from shortstack.profiling import Timing
from shortstack.pruning import prune
from shortstack.study import sizes
from shortstack.study.needs import Begun, Needing
from shortstack.study.shrink_dry_run import Foreseen
from zoo import speaking

SMALL = ("--text", "pydoc", "--samples", "2", "--length", "16")
REPAIRED = ("--text", "pydoc", "--repair-samples", "8", "--length", "16")


@pytest.fixture
def place(tmp_path, monkeypatch, own_cache) -> Path:
    source = Checkpoint.open(speaking(tmp_path / "m"))
    prune(source, plan(8, layers="3-4"), tmp_path / "cut")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, monkeypatch, *words: str):
    monkeypatch.setattr(sys, "argv", ["shortstack", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr()


VERBS = {
    "score": ("score", "m", "--metric", "bi,ppl", *SMALL, "-o", "scores.json"),
    "scores of blocks": (
        "score",
        "m",
        "--metric",
        "bi,ppl,repaired-window",
        "--window",
        "2-3",
        *SMALL[:2],
        "--length",
        "16",
    ),
    "scores of gradients": ("score", "m", "--metric", "taylor", *SMALL),
    "plan": ("plan", "m", "--drop", "2", *SMALL, "-o", "plan.json"),
    "a search": ("plan", "m", "--drop", "2", "--search", "--text", "pydoc", "--samples", "4", "--length", "16"),
    "repaired blocks": (
        "plan",
        "m",
        "--drop",
        "2",
        "--strategy",
        "repaired-blocks",
        "--samples",
        "4",
        "--length",
        "16",
    ),
    "a repaired window": (
        "plan",
        "m",
        "--drop",
        "2",
        "--metric",
        "repaired-window",
        "--text",
        "pydoc",
        "--length",
        "16",
    ),
    "sweep": ("sweep", "m", *SMALL),
    "prune": ("prune", "m", "--layers", "3-4", "-o", "out"),
    "prune by a metric": ("prune", "m", "--drop", "2", *SMALL, "-o", "out"),
    "prune and repair": ("prune", "m", "--layers", "3-4", "--repair", *REPAIRED, "-o", "new/out"),
    "repair": ("repair", "cut", "--source", "m", *REPAIRED, "-o", "out"),
    "verify": ("verify", "cut"),
    "verify against": ("verify", "cut", "--against", "m"),
    "evaluate": ("evaluate", "cut", "--perplexity", "pydoc", "--samples", "2", "--length", "16"),
    "profile": ("profile", "m", "--prompt", "8", "--new-tokens", "4", "--repeats", "1"),
    "profile against": ("profile", "cut", "--against", "m", "--prompt", "8", "--new-tokens", "4", "--repeats", "1"),
    "compare": ("compare", "m", *SMALL[:4], "--perplexity", "pydoc", "--limit", "4", "--prompt", "8", "--repeats", "1"),
    "evaluate both": ("evaluate", "cut", "--against", "m", "--samples", "2", "--length", "16", "--probes"),
}


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_that_is_asked_what_it_needs_does_nothing(name, place, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "cache" not in path.parts}
    needs = json.loads(said(capsys, monkeypatch, *VERBS[name], "--dry-run", "--json").out)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if "cache" not in path.parts} == before
    assert needs["seconds"] > 0
    assert needs["unknown"] == []
    assert needs["streamed"] is False
    assert needs["memory_bytes"] >= 100e6, "torch alone takes that"
    shown = said(capsys, monkeypatch, *VERBS[name], "--dry-run")
    assert "nothing is computed or written" in shown.out
    assert "Next: the same command without --dry-run" in shown.err


@pytest.mark.parametrize("words", [("evaluate", "q", *SMALL), ("profile", "q"), ("verify", "q", "--against", "q")])
def test_of_quantised_weights_what_can_be_known_is_said(words, place, capsys, monkeypatch):
    """No layer of them can be read alone and timed; what copies them is counted as ever."""
    shutil.copytree(place / "m", place / "q")
    config = json.loads((place / "q" / "config.json").read_text())
    (place / "q" / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    words = tuple({"--text": "--perplexity"}.get(word, word) for word in words)
    needs = json.loads(said(capsys, monkeypatch, *words, "--dry-run", "--json").out)
    size = Checkpoint.open(place / "q").weight_bytes
    assert needs["seconds"] is None
    assert needs["unknown"] == ["how fast quantised weights compute"]
    assert needs["read_bytes"] == (3 if words[0] == "verify" else 1) * size
    assert "unknown" in said(capsys, monkeypatch, *words, "--dry-run").out


def test_what_compare_does_not_count_is_said(place, capsys, monkeypatch):
    words = (*VERBS["compare"], "--repair", "--heal", "pydoc", "--memory", "75%", "--metric", "bi", "--dry-run")
    needs = json.loads(said(capsys, monkeypatch, *words, "--json").out)
    assert needs["unknown"] == ["what a repair takes", "what healing takes"]
    monkeypatch.setattr(sys, "argv", ["shortstack", *VERBS["compare"], "--memory", "1%", "--dry-run"])
    with pytest.raises(SystemExit):
        main()
    assert "memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--metric", "ppl", "--window", "8"), "1 to 7 of the model's 8 layers"),
        (("--metric", "taylor", "--window", "2"), "a metric that scores blocks"),
        (("--metric", "repaired-window"), "the size of the blocks"),
    ],
)
def test_what_score_refuses_its_dry_run_refuses(words, what, place, capsys, monkeypatch):
    for more in ((), ("--dry-run",)):
        monkeypatch.setattr(sys, "argv", ["shortstack", "score", "m", *words, *SMALL, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code
        assert what in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words",
    [
        ("score", "m", "--text", "slef"),
        ("sweep", "m", "--text", "slef"),
        ("plan", "m", "--text", "slef", "--metric", "bi", "--drop", "2"),
        ("plan", "m", "--text", "slef", "--search", "--drop", "2"),
        ("prune", "m", "--text", "slef", "--metric", "bi", "--drop", "2", "-o", "z"),
        ("repair", "cut", "--source", "m", "--text", "slef", "-o", "z"),
        ("compare", "m", "--text", "slef"),
        ("evaluate", "m", "--perplexity", "pydoc=0.5,copying", "--samples", "2"),
        ("evaluate", "m", "--perplexity", "missing.txt"),
    ],
)
def test_texts_that_are_not_there_are_refused_as_the_verb_does(words, place, capsys, monkeypatch):
    errors = []
    for more in (("--dry-run",), ()):
        monkeypatch.setattr(sys, "argv", ["shortstack", *words, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code
        told = capsys.readouterr().err.splitlines()
        errors.append([line for line in told if line.strip().startswith(("expected", "found"))])
    assert errors[0] == errors[1]


def test_a_text_that_no_metric_reads_need_not_be_there(place, capsys, monkeypatch):
    shown = said(capsys, monkeypatch, "plan", "m", "--text", "slef", "--metric", "reverse", "--drop", "2", "--dry-run")
    assert "nothing is computed or written" in shown.out


def test_blocks_take_a_stream_and_a_head_each(place):
    checkpoint, text = Checkpoint.open(place / "m"), CalibrationText("pydoc", 4, 16)
    needing = Needing(checkpoint, Compute(dtype="float32"), Begun(0.0, 0))
    singles, blocks = (needing.score(["ppl"], text, each) for each in ((), (2, 3)))
    more = 7 + 6  # places where a block of two of the eight layers, or of three, may start
    walked = 6 * 7 / 2 + 5 * 6 / 2  # layers behind them
    pace, tokens = needing.model.pace, 4 * 16
    assert blocks.seconds - singles.seconds == pytest.approx(tokens * (walked * pace.layer + more * pace.head))
    assert blocks.memory_bytes - singles.memory_bytes == more * tokens * checkpoint.config["hidden_size"] * 4


def test_a_repaired_sweep_holds_its_streams_and_takes_no_turns(place, monkeypatch):
    checkpoint, text = Checkpoint.open(place / "m"), CalibrationText("pydoc", 64, 16)
    needing = Needing(checkpoint, Compute(dtype="float32", stream=True), Begun(1.0, 0))
    monkeypatch.setattr(sizes, "STREAM_BYTES", 1000)
    plain, repaired = needing.sweep(text), needing.sweep(text, repair=True)
    width = checkpoint.config["hidden_size"]
    turns = -(-64 * 16 * width * 4 // 1000)
    assert plain.read_bytes == turns * checkpoint.weight_bytes
    assert repaired.read_bytes == 3 * checkpoint.weight_bytes
    sums = needing.model.fit_bytes(64 * 16)
    assert repaired.memory_bytes - plain.memory_bytes == 2 * 64 * 16 * width * 4 + sums - 1000


def test_a_matrix_that_is_too_wide_to_be_fitted_now_is_timed_by_a_smaller_one(place, monkeypatch):
    """A fit on as many tokens as inputs takes the third power of all; of inputs squared as many numbers are held."""
    model = replace(Needing(Checkpoint.open(place / "m"), Compute(), Begun(1.0, 0)).model, widest=40_000, width=10_000)
    asked = []
    monkeypatch.setattr(sizes, "_fit_seconds", lambda *sizes: asked.append(sizes) or 0.5)
    assert model.fitted(20_000) == 0.5 * (40_000 / 4096) ** 3
    assert asked == [(4096, 1024, "cpu", 2048, 1)]
    assert model.fit_bytes(80_000) == 8 * (40_000 * (2 * 40_000 + 20_000) + 10_000 * 60_000)


def test_counting_alone_takes_no_more_than_opening(place, capsys, monkeypatch):
    needs = json.loads(said(capsys, monkeypatch, "profile", "m", "--no-speed", "--dry-run", "--json").out)
    assert (needs["read_bytes"], needs["written_bytes"]) == (0, 0)


def test_two_models_that_are_timed_are_in_memory_together(place):
    source, cut = Checkpoint.open(place / "m"), Checkpoint.open(place / "cut")
    needing = Needing(cut, Compute(dtype="float32"), Begun(1.0, 0))
    timing = Timing("2", prompt=8, new_tokens=4, repeats=1)
    alone, both = needing.profile(timing, None), needing.profile(timing, source)
    assert both.read_bytes == source.weight_bytes + cut.weight_bytes
    assert both.memory_bytes - alone.memory_bytes >= source.weight_bytes
    assert both.seconds > alone.seconds


def test_what_does_not_fit_is_counted_and_not_said_to_be_timed(place, monkeypatch):
    cut = Checkpoint.open(place / "cut")
    monkeypatch.setattr("shortstack.profiling.profiler.available_memory", lambda _device: cut.weight_bytes)
    needing = Needing(cut, Compute(dtype="float32"), Begun(1.0, 7))
    both = needing.profile(Timing("2", prompt=8, new_tokens=4), Checkpoint.open(place / "m"))
    assert (both.seconds, both.memory_bytes, both.read_bytes) == (1.0, 7, 0)
    assert "the weights of both take" in both.unknown[0]


@pytest.mark.parametrize("generation", [GenerationChecks(probes=True), GenerationChecks(collapse_check=True)])
def test_a_model_that_is_to_write_and_does_not_fit_is_refused(generation, place, monkeypatch):
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: 1000)
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    needing = Needing(Checkpoint.open(place / "m"), Compute(), Begun(1.0, 0))
    with pytest.raises(InputError, match="room for its weights"):
        needing.evaluate(EvaluationText(()), Tasks(), generation)


def test_what_does_not_fit_is_said_in_place_of_what_comes_next(place, capsys, monkeypatch):
    words = ("prune", "m", "--layers", "3-4", "-o", "out", "--dry-run")
    told = said(capsys, monkeypatch, *words)
    assert "Next: the same command without --dry-run" in told.err
    assert "does not fit" not in told.out
    assert json.loads(said(capsys, monkeypatch, *words, "--json").out)["lacking"] == []
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: -psutil.virtual_memory().total)
    told = said(capsys, monkeypatch, *words)
    assert "Next:" not in told.err
    assert re.search(r"It does not fit here: memory: .* of -", told.out)
    assert re.search(r"It does not fit here: disk: .* of 10 B", told.out)
    short = json.loads(said(capsys, monkeypatch, *words, "--json").out)["lacking"]
    assert [each.partition(":")[0] for each in short] == ["memory", "disk"]


def test_a_model_on_a_gpu_is_set_beside_the_memory_of_that_gpu(place, monkeypatch):
    monkeypatch.setattr("shortstack.machine.device.pick_device", lambda _name: "cuda:1")
    monkeypatch.setattr("shortstack.machine.memory.available_memory", {"cuda:1": 10**9, "cpu": 10**12}.get)
    (short,) = lacking(2 * 10**11, 0, None, device="auto")
    assert short.startswith("memory on cuda:1: 200.0 GB, of ")
    assert lacking(2 * 10**11, 0, None, device="cpu") == []
    assert lacking(10**9, 0, None, device="cuda:1") == []


def test_a_shrink_that_takes_longer_than_its_minutes_says_so(capsys):
    foreseen = Foreseen({"score": 400.0}, 60.0, 460.0, 2.0, 1000, 1000, 1000, (), 1)
    show_foreseen(foreseen)
    assert "More than --minutes 2: with the least of everything it takes 7 min 40 s." in capsys.readouterr().out
    show_foreseen(replace(foreseen, minutes=8.0))
    assert "More than" not in capsys.readouterr().out


SHRINK = (
    "shrink",
    "m",
    "--drop",
    "2",
    "--data",
    "lines.jsonl",
    "--text",
    "pydoc",
    "--perplexity",
    "pydoc",
    "-o",
    "out",
)


@pytest.mark.parametrize("words", [SHRINK, (*SHRINK[:2], "--keep", "90%", *SHRINK[4:])])
def test_what_a_shrink_would_take_is_said_by_step(words, place, capsys, monkeypatch):
    pytest.importorskip("peft")  # the recipe heals by adapters
    rows = [f'{{"text": "the walk of {n} and one is in order"}}\n' for n in range(40)]
    (place / "lines.jsonl").write_text("".join(rows), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "cache" not in path.parts}
    foreseen = json.loads(said(capsys, monkeypatch, *words, "--dry-run", "--json").out)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if "cache" not in path.parts} == before
    trials = 3 if "--keep" in words else 1
    assert foreseen["trials"] == trials
    assert foreseen["disk_bytes"] == 2 * trials * Checkpoint.open(place / "m").weight_bytes
    assert {"plan", "prune", "heal", "evaluate"} <= set(foreseen["seconds"])
    assert foreseen["all_seconds"] >= sum(foreseen["seconds"].values()) + foreseen["after"]
    shown = said(capsys, monkeypatch, *words, "--dry-run")
    assert "of 15 min 0 s" in shown.out
    assert ("as if a quarter of the layers went" in shown.out) is (trials > 1)


def test_bytes_are_those_that_are_then_read_and_written(place, capsys, monkeypatch):
    source, cut = Checkpoint.open(place / "m"), Checkpoint.open(place / "cut")
    pruned = json.loads(said(capsys, monkeypatch, *VERBS["prune"], "--dry-run", "--json").out)
    assert (pruned["read_bytes"], pruned["written_bytes"]) == (cut.weight_bytes, cut.weight_bytes)
    repaired = json.loads(said(capsys, monkeypatch, *VERBS["prune and repair"], "--dry-run", "--json").out)
    assert repaired["read_bytes"] == source.weight_bytes + cut.weight_bytes
    assert repaired["written_bytes"] == cut.weight_bytes
    verified = json.loads(said(capsys, monkeypatch, *VERBS["verify against"], "--dry-run", "--json").out)
    assert verified["read_bytes"] == 2 * cut.weight_bytes + source.weight_bytes
    assert verified["written_bytes"] == 0


def test_a_streamed_walk_holds_two_layers_and_reads_all_of_them(place):
    checkpoint, text = Checkpoint.open(place / "m"), CalibrationText("pydoc", 2, 16)
    held = [
        Needing(checkpoint, Compute(stream=stream, dtype="float32"), Begun(1.0, 0)).score(["taylor"], text)
        for stream in (False, True)
    ]
    assert [needs.streamed for needs in held] == [False, True]
    assert [needs.read_bytes for needs in held] == [checkpoint.weight_bytes, 2 * checkpoint.weight_bytes]
    sizes = checkpoint.sizes
    spared = sum(sizes.layer_bytes) - 3 * max(
        sizes.layer_bytes
    )  # of eight layers in fp32 two are held, and one computes
    assert held[0].memory_bytes - held[1].memory_bytes == pytest.approx(spared, abs=20e6), "rss moves by itself"
    assert held[1].memory_bytes < psutil.virtual_memory().total


REFUSED = {
    "a layer that is none": (("prune", "m", "--layers", "3,9", "-o", "out"), "expected  layers from 0 to 7"),
    "scores": (("plan", "scores.json", "--drop", "2", "-o", "plan.json"), "a plan from scores takes no time"),
    "a file that exists": (("score", "m", "-o", "scores.json"), "scores.json"),
    "a folder that exists": (("prune", "m", "--layers", "3", "-o", "cut"), "exists"),
    "a folder that exists, of heal": (("heal", "m", "--data", "pydoc", "-o", "cut"), "exists"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_a_dry_run_too(name, place, capfd, monkeypatch):
    words, found = REFUSED[name]
    (place / "scores.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["shortstack", *words, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert found in capfd.readouterr().err


def test_the_questions_of_a_sweep_are_counted_or_refused(place, capsys, monkeypatch):
    choices = [" every layer", " nobody"]
    lines = [{"context": f"walk {who} visits", "choices": choices, "answer": 0} for who in "abcde"]
    (place / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [*VERBS["sweep"], "--stream"]
    alone = Needing(Checkpoint.open(place / "m"), Compute(), Begun(1.0, 0))
    text = CalibrationText("pydoc", 2, 16)
    plain, asked = alone.sweep(text), alone.sweep(text, place / "q.jsonl")
    layers, pace = alone.model.layers, alone.model.pace
    tokenizer = alone.checkpoint.tokenizer()
    context, *ends = (len(tokenizer(each).input_ids) for each in ("walk a visits", *choices))
    passed, scored = 5 * (context + sum(ends) - len(ends)), 5 * sum(ends)
    assert asked.seconds - plain.seconds == pytest.approx(layers * (passed * pace.layer + scored * pace.head))
    monkeypatch.setattr(sys, "argv", ["shortstack", *words, "--task", "missing.jsonl", "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code
    assert "missing.jsonl" in capsys.readouterr().err
    needs = json.loads(said(capsys, monkeypatch, *words, "--task", "piqa", "--dry-run", "--json").out)
    assert needs["seconds"] is None
    assert "time of piqa" in needs["unknown"][0]


def test_a_cut_that_is_not_exact_is_refused_in_a_dry_run_too(place, capfd, monkeypatch):
    architectures.make("diffllama", place / "d")
    for more in ((), ("--repair", *REPAIRED)):
        monkeypatch.setattr(sys, "argv", ["shortstack", "prune", "d", "--layers", "2", *more, "-o", "out", "--dry-run"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code
        assert "nearest exact cut: --layers 7" in capfd.readouterr().err
