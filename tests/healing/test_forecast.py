"""What a dry run says: exact where it can be known, of the right size where it is timed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.data import read_examples
from shortstack.healing import Full, HealingTask, Lora, Objective, Partial, Schedule, TrainingData, heal
from shortstack.healing.activations import activations_under
from shortstack.healing.forecast import forecast
from shortstack.healing.healer import HealingRun
from shortstack.healing.methods import method_named
from shortstack.planning import plan
from shortstack.pruning import prune
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")
TASK = HealingTask(TrainingData("pydoc", max_length=32, max_samples=40), schedule=Schedule(epochs=2, batch_size=8))


@pytest.mark.parametrize("method", [Partial(last=2), Full(), Lora()], ids=lambda method: method.name)
def test_a_dry_run_says_what_a_run_then_does(method, tmp_path):
    if isinstance(method, Lora):
        pytest.importorskip("peft")
    source = Checkpoint.open(speaking(tmp_path / "source"))
    task = replace(TASK, method=method)
    found = forecast(source, task)
    assert not list((tmp_path / "cache").rglob("*.states"))
    result = heal(source, tmp_path / "out", task)
    assert found.trainable_parameters == result.trainable_parameters
    assert found.written_bytes == Checkpoint.open(result.output).weight_bytes
    assert found.steps == result.history.steps
    examples = read_examples("pydoc", source.tokenizer(), max_length=32)[:40]
    assert (found.samples, found.held_out) == (40, 2)
    assert found.tokens == sum(len(example.ids) for example in examples[2:])
    kept = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.states")]
    assert found.cache_bytes == found.missing_bytes == sum(kept)
    again = forecast(source, task)
    assert (again.cache_bytes, again.missing_bytes) == (found.cache_bytes, 0)
    assert found.seconds > 0
    assert found.memory_bytes > 16 * found.trainable_parameters


def test_what_a_teacher_says_is_counted(tmp_path):
    teacher = Checkpoint.open(speaking(tmp_path / "source"))
    pruned = prune(teacher, plan(8, layers="3"), tmp_path / "pruned")
    task = replace(TASK, objective=Objective("distill", top_k=8, hidden_weight=0.1), teacher=teacher)
    found, dtype = forecast(pruned, task), str(HealingRun(pruned, task).dtype).removeprefix("torch.")
    everything = read_examples("pydoc", pruned.tokenizer(), max_length=32)[:40]
    tokens, predicted = (sum(len(each.ids) - less for each in everything) for less in (0, 1))
    states, top, hidden = (
        activations_under("a", [count], width, kind).size
        for count, width, kind in (
            (tokens, 32, dtype),
            (predicted, 16, "float32"),
            (predicted, 32, dtype),
        )
    )
    assert found.cache_bytes == states + top + hidden


@pytest.mark.parametrize("asked", [{}, {"last": 1}, {"last": 5}, {"layers": "1,4"}, {"near_cut": 2}], ids=str)
@pytest.mark.parametrize("name", ["partial", "lora"])
def test_what_trains_is_counted_before_there_is_a_cut(asked, name, tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    pruned = prune(source, plan(8, layers="3"), tmp_path / "pruned")
    method = method_named(name)(**asked)
    trained, running = method.layer_counts(7)
    found = method.trained_layers(pruned)
    assert trained == len(found)
    assert running == (7 if "near_cut" in asked else 7 - min(found, default=7))


IO = Path("/proc/self/io")


def read_by_this_process() -> int:
    """Bytes by read and copy_file_range, from the disk or the page cache."""
    return int(re.search(r"rchar: (\d+)", IO.read_text()).group(1))


@pytest.mark.skipif(not IO.exists(), reason="this system does not say what a process reads")
@pytest.mark.parametrize(("last", "teaches"), [(2, False), (6, False), (2, True)])
def test_bytes_of_weights_are_about_those_that_are_then_read(last, teaches, tmp_path, monkeypatch):
    """Layer by layer: a loader of transformers maps its files, of which nobody counts what is read."""
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    text = tmp_path / "a.txt"
    text.write_text("the walk visits every layer once " * 400)
    data = TrainingData(str(text), max_length=32, max_samples=40)
    task = HealingTask(data, Partial(last=last), schedule=Schedule(epochs=1, batch_size=8))
    heal(Checkpoint.open(speaking(tmp_path / "tiny")), tmp_path / "healed-tiny", task)  # libraries are read once
    source = Checkpoint.open(speaking(tmp_path / "source", hidden_size=512, intermediate_size=1024))
    pruned = prune(source, plan(8, layers="3"), tmp_path / "pruned")
    if teaches:
        task = replace(task, objective=Objective("distill", top_k=8), teacher=source)
    foreseen = forecast(pruned, task).read_bytes
    before = read_by_this_process()
    heal(Checkpoint.open(tmp_path / "pruned"), tmp_path / "out", task)
    read = read_by_this_process() - before - pruned.weight_bytes  # what is copied the digest takes from the page cache
    assert read == pytest.approx(foreseen, rel=0.1)
    assert foreseen > 2.5 * pruned.weight_bytes
    again = forecast(pruned, task).read_bytes
    assert foreseen - again >= sum(source.sizes.layer_bytes[: 7 - last]), "what frozen layers gave is kept"


def test_without_a_cache_all_weights_are_held_and_frozen_layers_compute_in_every_epoch(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", hidden_size=512, intermediate_size=1024))
    task = replace(TASK, method=Partial(last=1), schedule=Schedule(epochs=50, batch_size=8))
    kept, anew = forecast(source, task), forecast(source, task, cache=False)
    assert (anew.cache_bytes, anew.missing_bytes) == (0, 0)
    held = sum(source.sizes.layer_parameters[:7]) * HealingRun(source, task).dtype.itemsize
    assert anew.memory_bytes - kept.memory_bytes == held
    assert anew.read_bytes == 3 * source.weight_bytes
    assert anew.seconds > kept.seconds
