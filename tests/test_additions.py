"""Additions as CONTRIBUTING has them: a toy metric, method, strategy and source, put into a copy of the package in those
places alone, are seen on the command line, in the listings, in the tables of the pages, and in a study.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from studies import make_data, write_study

ROOT = Path(__file__).parents[1]

METRIC = '''
def toy_order(layers: int, seed: int) -> list[float]:
    """Even layers go first."""
    return [float(layer % 2) for layer in range(layers)]


METRICS: dict'''
METRIC_ENTRY = """
        Metric("toy-metric", "layers", toy_order, "the layer's number is odd", "-"),
        Metric("random","""
STRATEGY = '''
def first_layers(scores: Scores | int, removal: Removal) -> Plan:
    """The first layers that may go."""
    layers = scores if isinstance(scores, int) else scores.layers
    return Plan(layers, tuple(removal.allowed[: removal.amount]), "the first")


STRATEGIES: Mapping'''
STRATEGY_ENTRY = """
        Strategy("toy-strategy", "scores", first_layers, "the first layers", "-"),
        Strategy("lowest","""
METHOD = '''
"""A toy method: the last layer trains."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from shortstack.healing.layer_choice import Partial
from shortstack.machine.options import options


@options
class ToyOptions:
    """Options of its own."""

    toy_share: float = Field(0.5, gt=0, lt=1, description="A toy share.")


@options
class Toy(Partial, ToyOptions):
    """The last layer."""

    name: ClassVar[str] = "toy-method"
    trains: ClassVar[str] = "toys"
'''
SOURCE = '''
def toy_words(held_out: bool) -> str:
    """One sentence, again and again."""
    return ("the door of the dog is in order " if held_out else "the dog lies by the door and walks ") * 40


SOURCES: Mapping'''
SOURCE_ENTRY = '= {"toy-source": toy_words, "pydoc": pydoc}'
STUDY = """
model: model
metric: toy-metric
calibration: {source: toy-source, samples: 2, length: 16}
drop: 2
heal:
  {name: quick, method: toy-method, toy_share: 0.25, data: [toy-source, lines.jsonl=2], num_train_epochs: 1, max_length: 32}
evaluation: {perplexity: [toy-source], seq_length: 16, num_samples: 2}
trials: [{strategy: toy-strategy}]
"""


STUDY_RUN = "study study.yaml -o runs --json"


def insert(path: Path, anchor: str, addition: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(anchor) == 1, f"{path.name} has {text.count(anchor)} of {anchor!r}"
    path.write_text(text.replace(anchor, addition), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the changed package, a tiny model, and data."""
    folder = tmp_path_factory.mktemp("additions")
    package = folder / "src" / "shortstack"
    shutil.copytree(ROOT / "src" / "shortstack", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "doc_tables.py", folder / "tests")
    metrics, strategies, methods = (
        package / room / file
        for room, file in (("scoring", "metrics.py"), ("planning", "strategies.py"), ("healing", "methods.py"))
    )
    insert(metrics, "\nMETRICS: dict", METRIC)
    insert(metrics, '\n        Metric("random",', METRIC_ENTRY)
    insert(strategies, "\nSTRATEGIES: Mapping", STRATEGY)
    insert(strategies, '\n        Strategy("lowest",', STRATEGY_ENTRY)
    insert(package / "data" / "sources.py", "\nSOURCES: Mapping", SOURCE)
    insert(package / "data" / "sources.py", '= {"pydoc": pydoc}', SOURCE_ENTRY)
    (package / "healing" / "toy.py").write_text(METHOD.lstrip(), encoding="utf-8")
    insert(methods, "(Partial, Lora,", "(Partial, Toy, Lora,")
    insert(methods, "HealOptions(LoraOptions,", "HealOptions(ToyOptions, LoraOptions,")
    imported = "import HealingMethod\n"
    insert(methods, imported, f"{imported}from shortstack.healing.toy import Toy, ToyOptions\n")
    write_study(make_data(folder), STUDY)
    return folder


def shortstack(place: Path, *commands: str) -> list[str]:
    """Return what each command says with the changed package, all in one process in that folder, a study's steps too."""
    paths = os.pathsep.join((str(place / "src"), str(ROOT / "tests")))
    told = {"PYTHONPATH": paths, "SHORTSTACK_CACHE": str(place / "cache"), "COLUMNS": "200"}
    words = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(words, cwd=place, env=os.environ | told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


COMMANDS = """
import io, json, runpy, sys
from contextlib import redirect_stdout
import shortstack.study.workers as workers
from shortstack.cli import main
from studies import inline
workers.local = lambda _workers=1: inline()
runpy.run_path("tests/doc_tables.py", run_name="__main__")
said = []
for words in json.loads(sys.argv[1]):
    sys.argv, out = ["shortstack", *words.split()], io.StringIO()
    with redirect_stdout(out):
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, words
    said.append(out.getvalue())
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(place: Path) -> list[str]:
    """Return what the changed package says of them, and of a study and of a recipe that names them."""
    plan = "plan model --json --drop"
    return shortstack(
        place,
        "score --help",
        "plan --help",
        "heal --help",
        "list --json",
        f"{plan} 2 --metric toy-metric",
        f"{plan} 3 --strategy toy-strategy --metric reverse",
        STUDY_RUN,
        "study schema",
    )


def test_they_stand_in_the_help_and_in_the_listings(said):
    score, plan, heal, listings = said[:4]
    assert "toy-metric" in score
    assert "toy-source" in score
    assert "toy-strategy" in plan
    assert [word for word in ("toy-method: toys", "--toy-share", "toy-source") if word not in heal] == []
    listed = json.loads(listings)
    for what in ("metric", "strategy", "method"):
        names = [row["name"] for row in listed["strategies" if what == "strategy" else f"{what}s"]]
        assert f"toy-{what}" in names


def test_they_stand_in_the_tables_of_a_page(place, said):
    listings = (place / "docs" / "list.md").read_text()
    assert all(f"| `toy-{what}` |" in listings for what in ("metric", "strategy", "method"))


def test_they_choose_layers_and_a_study_and_a_recipe_know_them(place, said):
    by_metric, by_strategy, done, schema = map(json.loads, said[4:])
    assert (by_metric["removed"], by_strategy["removed"]) == ([0, 2], [0, 1, 2])
    assert done["trials"] == {"done": 2}, done
    assert "toy_share" in json.dumps(schema)
    insert(place / "src" / "shortstack" / "data" / "sources.py", "the door of the dog", "the dog of the door")
    (again,) = map(json.loads, shortstack(place, STUDY_RUN))
    assert again["trials"] == {"done": 2}
    assert again["ran"] == done["ran"] - 2, "plans stay; cuts, whose weights were removed, are made again"
