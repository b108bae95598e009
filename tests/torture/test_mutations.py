"""Files that somebody or something has changed: what reads them says so, or reads what is there; never a traceback.

A change that makes other valid data (another number in a plan) is no fault that a reader could see.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from mutations import of_bytes, of_json
from tiny_gguf import write_gguf

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.gguf import dequantised
from shortstack.checkpoint.record import changed_since, near_cuts, skipped_layers
from shortstack.checkpoint.weights import check_fit
from shortstack.data import CalibrationText
from shortstack.errors import ShortstackError
from shortstack.healing.recipes import read_recipe
from shortstack.machine.files import read_json
from shortstack.machine.memory import forget_peak_rss, peak_rss
from shortstack.planning import Plan, plan
from shortstack.pruning import prune, verify
from shortstack.report import Report
from shortstack.scoring import Scores, score
from shortstack.study import run_study
from shortstack.study.grid import read_study
from studies import inline
from zoo import speaking

COUNT = int(os.environ.get("TORTURE_MUTATIONS", "40"))
SLACK = 32_000_000  # bytes: what the allocator keeps
Mutation = Callable[[bytes, random.Random], bytes]
STUDY = "models: [m]\nmetrics: [reverse]\ndrop: [2]\nevaluation: {perplexity: [pydoc], samples: 4, length: 32}\n"
RECIPE = "title: one\nplan: {metric: bi, drop: 25%}\nheal: {method: lora, epochs: 1, rank: 4, max_length: 32}\n"


@dataclass(frozen=True)
class Target:
    """A file below the folder, what changes it, and who reads it."""

    file: str
    mutation: Mutation
    read: Callable[[Path], object]


def opened(place: Path) -> None:
    """As every verb opens a model: headers, structure, whether the tensors fit."""
    checkpoint = Checkpoint.open(place / "m")
    _ = checkpoint.sizes, checkpoint.anatomy
    check_fit(checkpoint)


def tokenised(place: Path) -> None:
    CalibrationText("pydoc", 2, 16).tokens(Checkpoint.open(place / "m").tokenizer())


def recorded(place: Path) -> None:
    cut, source = Checkpoint.open(place / "cut"), Checkpoint.open(place / "m")
    if cut.record:
        skipped_layers(cut, source)
        changed_since(cut, source)
        near_cuts(cut, 1)
        verify(cut)
    _ = cut.made_from


def planned(place: Path) -> None:
    checkpoint = Checkpoint.open(place / "m")
    Plan.from_dict(read_json(place / "plan.json"), where="plan.json").sized(checkpoint.sizes)


def scored(place: Path) -> None:
    scores = Scores.from_dict(read_json(place / "scores.json"), where="scores.json")
    scores.order("bi")
    scores.to_dict()


TARGETS = {
    "safetensors": Target("m/model-00001-of-00004.safetensors", of_bytes, opened),
    "index": Target("m/model.safetensors.index.json", of_json, opened),
    "config": Target("m/config.json", of_json, opened),
    "tokenizer": Target("m/tokenizer.json", of_json, tokenised),
    "tokenizer config": Target("m/tokenizer_config.json", of_json, tokenised),
    "record": Target("cut/shortstack.json", of_json, recorded),
    "plan": Target("plan.json", of_json, planned),
    "scores": Target("scores.json", of_json, scored),
    "recipe": Target("recipe.yaml", of_bytes, lambda place: read_recipe(str(place / "recipe.yaml"))),
    "study": Target("study.yaml", of_bytes, lambda place: read_study(place / "study.yaml")),
    "GGUF": Target("model.gguf", of_bytes, lambda place: Checkpoint.open(dequantised(place / "model.gguf")).sizes),
    "run store": Target("runs/runs.sqlite", of_bytes, lambda place: Report.of(place / "runs").html()),
}


def grown_by(read: Callable[[], object]) -> int:
    """The bytes by which this process grew at its largest while it read."""
    forget_peak_rss()
    before = psutil.Process().memory_info().rss
    read()
    return max(0, peak_rss() - before)


@contextmanager
def ended_within(seconds: int) -> Iterator[None]:
    """Raises TimeoutError where that is not so."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything."""
    place = tmp_path_factory.mktemp("whole")
    speaking(place / "single")
    model = Checkpoint.open(place / "single").model(dtype=torch.float32)
    shutil.copytree(place / "single", place / "m", ignore=shutil.ignore_patterns("model.safetensors"))
    model.save_pretrained(place / "m", max_shard_size="100KB")
    checkpoint = Checkpoint.open(place / "m")
    assert (place / TARGETS["safetensors"].file).exists(), sorted(path.name for path in (place / "m").iterdir())
    chosen = plan(8, layers="3-4")
    prune(checkpoint, chosen, place / "cut")
    chosen.sized(checkpoint.sizes).save(place / "plan.json")
    tokens = CalibrationText("pydoc", 4, 32).tokens(checkpoint.tokenizer())
    score(checkpoint, tokens, metrics="bi,ppl").save(place / "scores.json")
    write_gguf(place / "model.gguf")
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "study.yaml").write_text(STUDY.replace("[m]", f"[{place / 'm'}]"))
    run_study(place / "study.yaml", place / "runs", launcher=inline)
    return place


@pytest.mark.parametrize("name", TARGETS)
def test_what_reads_a_changed_file_never_ends_in_a_traceback(
    name: str, whole: Path, tmp_path: Path, counted: Callable[[str], None]
) -> None:
    target, ends = TARGETS[name], Counter[str]()
    place = shutil.copytree(whole, tmp_path / "place")
    content = (whole / target.file).read_bytes()
    target.read(place)
    usual = grown_by(lambda: target.read(place))
    for seed in range(COUNT):
        rng = random.Random(f"{name} {seed}")
        (place / target.file).write_bytes(target.mutation(content, rng))
        try:
            with ended_within(60):
                grown = grown_by(lambda: target.read(place))
            ends["read"] += 1
            assert grown <= 2 * usual + SLACK, f"{name}, change {seed}: {grown:,} bytes of memory in place of {usual:,}"
        except ShortstackError:
            ends["refused"] += 1
        except (Exception, SystemExit) as error:  # noqa: BLE001  what this test is about
            pytest.fail(f"{name}, change {seed}: {type(error).__name__}: {error}")
        for left in place.rglob("*-journal"):
            left.unlink()
    counted(f"changed files, {name}: {dict(ends)}")
    assert ends["refused"], "no change was seen"


@pytest.mark.parametrize("part", ["weights", "config.json", "tokenizer.json"])
def test_verify_sees_every_flip(part: str, whole: Path, tmp_path: Path) -> None:
    place = shutil.copytree(whole / "cut", tmp_path / "cut")
    file = next(place.glob("model-*.safetensors")) if part == "weights" else place / part
    content = file.read_bytes()
    for seed in range(COUNT):
        rng = random.Random(seed)
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            seen = not verify(Checkpoint.open(place)).ok
        except ShortstackError:
            seen = True
        assert seen, f"{part}, flip {seed}"


def test_the_store_of_these_tests_is_whole(whole: Path) -> None:
    with sqlite3.connect(whole / "runs" / "runs.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
