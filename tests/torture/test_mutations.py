"""Files that somebody or something has changed: what reads them says so, or reads what is there; never a traceback.

A change that makes other valid data (another number in a plan) is no fault that a reader could see.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from mutations import of_bytes, of_header, of_json, of_yaml

from gguf_models import llama
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.gguf import dequantised
from shortstack.checkpoint.record import changed_since, skipped_layers
from shortstack.checkpoint.weights import check_fit
from shortstack.data import Text
from shortstack.errors import ShortstackError
from shortstack.healing.recipes import read_recipe
from shortstack.machine.files import read_json
from shortstack.machine.memory import forget_peak_rss, peak_rss
from shortstack.planning import Plan
from shortstack.pruning import prune, verify
from shortstack.report import Report
from shortstack.scoring import Scores, score
from shortstack.study import run_study
from shortstack.study.grid import read_study
from studies import inline
from zoo import speaking

COUNT = int(os.environ.get("TORTURE_MUTATIONS", "20"))
SLACK = 32_000_000  # bytes: what the allocator keeps
STUDY = """model: "{place}/m"
metric: reverse
drop: [2]
evaluation: {{perplexity: ["{place}/text.txt"], samples: 2, length: 16}}
"""
RECIPE = (
    "title: one\nplan: {metric: bi, drop: 25%}\nheal: {method: lora, num_train_epochs: 1, lora_r: 4, max_length: 32}\n"
)


def opened(place: Path) -> None:
    """As every verb opens a model: headers, structure, whether the tensors fit."""
    checkpoint = Checkpoint.open(place / "m")
    _ = checkpoint.sizes, checkpoint.anatomy
    check_fit(checkpoint)


def tokenised(place: Path) -> None:
    Text(str(place / "text.txt"), 2, 16).tokens(Checkpoint.open(place / "m").tokenizer())


def recorded(place: Path) -> None:
    cut, source = Checkpoint.open(place / "cut"), Checkpoint.open(place / "m")
    if cut.record:
        skipped_layers(cut, source)
        changed_since(cut, source)
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
    "m/model-00001-of-00004.safetensors": (of_header, opened),
    "m/model.safetensors.index.json": (of_json, opened),
    "m/config.json": (of_json, opened),
    "m/tokenizer.json": (of_json, tokenised),
    "m/tokenizer_config.json": (of_json, tokenised),
    "cut/shortstack.json": (of_json, recorded),
    "plan.json": (of_json, planned),
    "scores.json": (of_json, scored),
    "recipe.yaml": (of_yaml, lambda place: read_recipe(str(place / "recipe.yaml"))),
    "study.yaml": (of_yaml, lambda place: read_study(place / "study.yaml")),
    "model.gguf": (of_bytes, lambda place: Checkpoint.open(dequantised(place / "model.gguf")).sizes),
    "runs/runs.sqlite": (of_bytes, lambda place: Report.of(place / "runs").html()),
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
    text = "the walk visits every layer once and in order "
    (place / "text.txt").write_text(text * 40)  # little beside what is measured
    speaking(place / "single")
    model = Checkpoint.open(place / "single").model(dtype=torch.float32)
    shutil.copytree(place / "single", place / "m", ignore=shutil.ignore_patterns("model.safetensors"))
    model.save_pretrained(place / "m", max_shard_size="100KB")
    checkpoint = Checkpoint.open(place / "m")
    chosen = plan(8, layers="3-4")
    prune(checkpoint, chosen, place / "cut")
    chosen.sized(checkpoint.sizes).save(place / "plan.json")
    tokens = Text(str(place / "text.txt"), 4, 32).tokens(checkpoint.tokenizer())
    score(checkpoint, tokens, metrics="bi,ppl").save(place / "scores.json")
    llama(place / "model.gguf", layers=2)
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "study.yaml").write_text(STUDY.format(place=place))
    run_study(place / "study.yaml", place / "runs", launcher=inline)
    return place


@pytest.mark.parametrize("file", TARGETS)
def test_what_reads_a_changed_file_never_ends_in_a_traceback(
    file: str, whole: Path, tmp_path: Path, counted: Callable[[str], None]
) -> None:
    mutation, read = TARGETS[file]
    place, ends = shutil.copytree(whole, tmp_path / "place"), Counter[str]()
    content = (place / file).read_bytes()
    # The first read imports, and of the others one grows by what the allocator gave back after another.
    usual = max(grown_by(lambda: read(place)) for _ in range(4))
    for seed in range(COUNT):
        (place / file).write_bytes(mutation(content, random.Random(f"{file} {seed}")))
        try:
            with ended_within(60):
                grown = grown_by(lambda: read(place))
            ends["read"] += 1
            assert grown <= 2 * usual + SLACK, f"change {seed}: {grown:,} bytes of memory in place of {usual:,}"
        except ShortstackError:
            ends["refused"] += 1
        except (Exception, SystemExit) as error:  # noqa: BLE001  what this test is about
            pytest.fail(f"change {seed}: {type(error).__name__}: {error}")
        for left in place.rglob("*-journal"):
            left.unlink()
    counted(f"changed files, {file}: {dict(ends)}")
    assert ends["refused"], "no change was seen"


@pytest.mark.parametrize("part", ["weights", "others"])
def test_verify_sees_every_flip(part: str, whole: Path, tmp_path: Path) -> None:
    place = shutil.copytree(whole / "cut", tmp_path / "cut")
    written = [
        path for path in place.iterdir() if path.name not in ("shortstack.json", "README.md")
    ]  # the one has the digests of all others, the other is nobody's but its reader's
    files = sorted(path for path in written if (path.suffix == ".safetensors") == (part == "weights"))
    assert len(files) > 1
    for seed in range(COUNT):
        rng = random.Random(seed)
        file = rng.choice(files)
        content = file.read_bytes()
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            seen = not verify(Checkpoint.open(place)).ok
        except ShortstackError:
            seen = True
        assert seen, f"{file.name}, flip {seed}"
        file.write_bytes(content)
