"""--dry-run of a verb: nothing is written, all is refused that the verb refuses, memory and disk are said."""

import json
import re
import shutil
from pathlib import Path

import architectures
import psutil
import pytest

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.cli.dry_run import lacking
from shortstack.data import CalibrationText
from shortstack.decoder.decoder import STREAM_BYTES
from shortstack.decoder.requirements import LOGIT_COPIES, requirements
from shortstack.decoder.wrapping import LOGIT_BYTES
from shortstack.machine.device import Compute
from shortstack.machine.memory import Requirements
from shortstack.planning import Choice
from shortstack.planning.chooser import check_choice
from shortstack.pruning import prune
from shortstack.repairing.repairer import check_repair
from zoo import speaking

REPAIRED = ("--text", "pydoc", "--repair-samples", "8", "--length", "16")
SMALL = ("--text", "pydoc", "--samples", "4", "--length", "16")
STUDY = """
models: [m]
metrics: [reverse]
drop: 2
evaluation: {perplexity: [pydoc], length: 16, samples: 2, collapse_check: false}
"""


@pytest.fixture
def place(tmp_path, command) -> Path:
    source = Checkpoint.open(speaking(tmp_path / "m"))
    prune(source, plan(8, layers="3-4"), tmp_path / "cut")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def files(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in place.rglob("*")}


GOES = {  # what is asked, and how many times the cut's weights are on the disk at most
    "prune": (("prune", "m", "--layers", "3-4", "-o", "out"), 1),
    "prune by a metric": (("prune", "m", "--drop", "2", "--metric", "bi", *SMALL, "-o", "out"), 1),
    "prune and repair": (("prune", "m", "--layers", "3-4", "--repair", *REPAIRED, "-o", "new/out"), 2),
    "prune on its own text": (("prune", "m", "--drop", "2", "--text", "self", *SMALL[2:], "-o", "out"), 1),
    "heal": (("heal", "cut", "--data", "pydoc", "--max-samples", "16", "--max-length", "32", "-o", "out"), 1),
    "evaluate both": (("evaluate", "cut", "--against", "m", "--samples", "2", "--length", "16", "--collapse-check"), 0),
}


@pytest.mark.parametrize("name", GOES)
def test_a_dry_run_writes_nothing_and_says_memory_and_disk(name, place, command, monkeypatch):
    words, copies = GOES[name]
    monkeypatch.setattr("shortstack.decoder.own_text.Writer.written", lambda *_: pytest.fail("the model writes"))
    before = files(place)
    found = json.loads(command.said(*words, "--dry-run", "--json"))
    assert files(place) == before
    assert 100e6 < found["memory_bytes"] < found["memory_available_bytes"], "torch alone takes that"
    assert found["lacking"] == []
    if copies is not None:
        assert found["disk_bytes"] == copies * Checkpoint.open(place / "cut").weight_bytes


def test_by_the_clock_no_steps_are_foretold(place, command):
    words = (*GOES["heal"][0], "--minutes", "1", "--dry-run")
    assert json.loads(command.said(*words, "--json"))["steps"] is None
    code, out, err = command(*words)
    assert code == 0
    assert "as many as --minutes leaves time for" in out
    assert "no output is written" in out
    assert "memory, about" in out
    assert "Next: the same command without --dry-run" in err


REFUSED = {  # what both say, and the word that it is told by
    "a layer that is none": (("prune", "m", "--layers", "3,9", "-o", "out"), "layers from 0 to 7"),
    "a folder that exists": (("prune", "m", "--layers", "3", "-o", "cut"), "it exists"),
    "a folder in the model": (("prune", "m", "--layers", "3", "-o", "m/out"), "outside the input"),
    "a text that is not there": (("prune", "m", "--metric", "bi", "--drop", "2", "--text", "slef", "-o", "z"), "slef"),
    "too few samples": (
        ("prune", "m", "--strategy", "search", "--drop", "2", "--text", "pydoc", "--samples", "2", "-o", "z"),
        "is held out",
    ),
    "no exact cut, repaired": (("prune", "d", "--layers", "2", "--repair", *REPAIRED, "-o", "z"), "nearest exact cut"),
    "a healed folder": (("heal", "m", "--data", "pydoc", "-o", "cut"), "it exists"),
    "data to heal on": (("heal", "m", "--data", "lost.jsonl", "-o", "z"), "lost.jsonl"),
    "a study in a model": (("study", "study.yaml", "-o", "m/runs"), "outside a model's"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_dry_run_refuses_what_its_verb_refuses(name, place, command):
    words, found = REFUSED[name]
    if words[1] == "d":
        architectures.make("diffllama", place / "d")
    before, told = files(place), []
    for more in (("--dry-run",), ()):
        code, _, err = command(*words, *more)
        assert code == 2
        assert found in " ".join(err.split())
        assert files(place) == before or not more, "heal itself leaves a folder that says how it began"
        told.append([line.strip() for line in err.splitlines() if line.strip().startswith(("expected", "found"))])
    assert told[0] == told[1]


def test_what_does_not_fit_is_said_in_place_of_what_comes_next(place, command, monkeypatch):
    words = (*GOES["prune by a metric"][0], "--dry-run")
    monkeypatch.setattr("shortstack.cli.dry_run._libraries", lambda _needed: 10**15)
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: 10**6)
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 10**9)
    _, out, err = command(*words)
    assert "Next:" not in err
    assert "It does not fit here: memory" in out
    short = json.loads(command.said(*words, "--json"))["lacking"]
    assert [each.partition(":")[0] for each in short] == ["memory"]


def test_disk_and_the_memory_of_a_gpu_are_set_beside_what_is_needed(place, monkeypatch):
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    monkeypatch.setattr("shortstack.machine.memory.available_memory", {"cuda:1": 10**9, "cpu": 10**12}.get)
    memory, disk = lacking(Requirements(2 * 10**9, 11, device="cuda:1"))
    assert re.fullmatch(r"memory: 2.0 GB, of 1.0 GB", memory)
    assert re.fullmatch(r"disk: 11 B, of 10 B free", disk)
    assert lacking(Requirements(10**9, 10, device="cuda:1")) == []
    assert lacking(Requirements(10**9, 0)) == [], "libraries are on both sides"


def test_a_streamed_model_holds_one_layer_and_two_as_stored(place):
    source = Checkpoint.open(place / "m")
    sizes, logits = source.sizes, LOGIT_COPIES * LOGIT_BYTES[True]
    whole = requirements(source, Compute(dtype="float32", device="cpu"))
    streamed = requirements(source, Compute(dtype="float32", device="cpu", stream=True), tokens=10, streams=3)
    assert (whole.memory_bytes, whole.streamed) == (source.weight_bytes + logits, False)
    hidden = 10 * 3 * source.width * 4
    around = sizes.other_bytes + 3 * max(sizes.layer_bytes)
    assert (streamed.memory_bytes, streamed.streamed) == (around + logits + hidden, True)
    many = requirements(source, Compute(dtype="float32", device="cpu"), tokens=10**9, streams=9, in_turns=True)
    assert many.memory_bytes - whole.memory_bytes == STREAM_BYTES
    assert whole.memory_bytes < psutil.virtual_memory().total


def test_a_repair_holds_more_of_more_windows_and_a_choice_of_more_cuts(place):
    source, compute = Checkpoint.open(place / "m"), Compute(dtype="float32", device="cpu")
    few, many = (check_repair(source, CalibrationText("pydoc", count, 16), compute) for count in (8, 64))
    assert many.memory_bytes - few.memory_bytes >= 56 * 16 * 6 * source.width * 4, "six streams of hidden states"
    text = CalibrationText("pydoc", 4, 16)
    hidden, losses = (check_choice(source, Choice(name, 2), text, compute)[1] for name in ("bi", "ppl"))
    assert losses.memory_bytes - hidden.memory_bytes == 8 * 4 * 16 * source.width * 4, "a stream for each layer more"
    assert check_choice(source, Choice("reverse", 2), text, compute) == (plan(8, drop=2), Requirements())
