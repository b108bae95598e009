"""profile() of a checkpoint, against the checkpoint itself; speeds by a clock of our own; ratios and intervals."""

import itertools
import json
import re
import statistics

import pytest
import torch

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.cli.console import show_result
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.profiling import Timing, profile
from shortstack.profiling.speed import Load, rates, ratio, speeds
from shortstack.pruning import prune
from zoo import make, tiny


@pytest.fixture
def clock(monkeypatch):
    """The hands of the clock that timing looks at."""
    now = [0.0]
    monkeypatch.setattr("shortstack.profiling.speed.time.perf_counter", lambda: now[0])
    return now


def ticking(model, clock, seconds):
    """Each forward of the model takes as long as seconds(number of the forward, tokens in it) says."""
    forwards = itertools.count()

    def tick(_module, _args, kwargs, _output):
        clock[0] += seconds(next(forwards), kwargs["input_ids"].shape[1])

    model.register_forward_hook(tick, with_kwargs=True)
    return model


def loaded(**overrides):
    return Checkpoint.open(tiny("llama")).model(dtype=torch.float32, **overrides)


def test_prefill_is_the_prompt_until_the_first_token_and_decode_what_follows(clock):
    model = ticking(loaded(), clock, lambda _, tokens: 10.0 if tokens > 1 else 0.5)
    found = rates(model, Load(batch=3, prompt=20, new_tokens=8))
    assert found.prefill == pytest.approx(3 * 20 / 10)
    assert found.decode == pytest.approx(3 * 8 / (8 * 0.5))


def test_speed_is_the_median_of_the_runs_after_the_first(clock):
    """Runs of one prefill and eight more tokens; a token of the first run takes four seconds, of the second one, ..."""
    model = ticking(loaded(), clock, lambda number, tokens: 100.0 if tokens > 1 else (4.0, 1.0, 0.5, 2.0)[number // 9])
    (speed,) = speeds([model], Load(prompt=4, new_tokens=8), repeats=3)
    assert speed.decode_runs == (1.0, 2.0, 0.5)
    assert (speed.batch, speed.decode_tokens_per_s, speed.prefill_tokens_per_s) == (1, 1.0, 0.04)


def test_a_ratio_in_turns_survives_a_machine_that_changes_speed(clock):
    """The machine slows down tenfold half way; each pair still says 2."""
    slow = lambda: 1.0 if len(runs) < 12 else 10.0  # noqa: E731
    runs = []
    models = [
        ticking(loaded(), clock, lambda _, tokens, own=own: (tokens > 1 and runs.append(1)) or own * slow())
        for own in (1.0, 2.0)
    ]
    quick, half = speeds(models, Load(prompt=4, new_tokens=2), repeats=9)
    found = ratio(quick.decode_runs, half.decode_runs)
    assert max(quick.decode_runs) == pytest.approx(10 * min(quick.decode_runs))
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(
    ("pairs", "place", "confidence"), [(5, 0, 1 - 2 / 32), (6, 0, 1 - 2 / 64), (12, 2, 1 - 2 * 79 / 4096)]
)
def test_the_interval_is_the_narrowest_that_covers_95_percent(pairs, place, confidence):
    values = [float(number) for number in range(1, pairs + 1)]
    found = ratio(values, [1.0] * pairs)
    assert (found.low, found.high) == (values[place], values[-1 - place])
    assert found.confidence == pytest.approx(confidence)
    assert found.value == statistics.median(values)


def test_a_profile_counts_what_the_checkpoint_holds(tmp_path):
    source = Checkpoint.open(tiny("llama"))
    pruned = prune(source, plan(8, layers="6-7"), tmp_path / "pruned")
    found = profile(pruned, against=source, timing=Timing((1, 3), prompt=6, new_tokens=2, repeats=2)).to_dict()
    model = pruned.model(dtype=torch.float32)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["weight_bytes"] == sum(weight.numel() * 4 for weight in model.state_dict().values())
    assert found["kv_bytes_per_token"] == 6 * 2 * 2 * 8 * 4
    linear = sum(parameter.numel() for name, parameter in model.named_parameters() if "norm" not in name) - 96 * 32
    assert (found["macs"]["tokens"], found["macs"]["paper"]) == (6, 6 * linear + 13 * 2 * 6 * 32)
    rotary = 6 * 4  # angles, which some releases of transformers compute by a matrix product
    assert found["macs"]["total"] - 6 * linear - 6 * 2 * 6 * 6 * 32 in (0, rotary)
    assert [speed["batch"] for speed in found["speed"]] == [1, 3]
    assert all(len(speed["decode_runs"]) == 2 and min(speed["decode_runs"]) > 0 for speed in found["speed"])
    assert found["peak_bytes"] > found["weight_bytes"]
    other = found["against"]
    assert other["parameters"] == source.parameters
    for own, theirs, paired in zip(found["speed"], other["speed"], other["ratios"], strict=True):
        expected = statistics.median(a / b for a, b in zip(own["decode_runs"], theirs["decode_runs"], strict=True))
        assert paired["decode"]["value"] == pytest.approx(expected)
    json.dumps(found)


def test_without_batch_sizes_no_weight_is_read(monkeypatch):
    checkpoint = Checkpoint.open(tiny("gpt2"))
    monkeypatch.setattr(Checkpoint, "model", None)
    found = profile(checkpoint, timing=Timing((), prompt=64)).to_dict()
    assert (found["speed"], found["peak_bytes"]) == ([], None)
    assert found["parameters"] == checkpoint.parameters


def test_what_does_not_fit_in_memory_is_counted_and_not_timed(monkeypatch, capsys):
    checkpoint = Checkpoint.open(tiny("llama"))
    monkeypatch.setattr("shortstack.profiling.profiler.available_memory", lambda _device: checkpoint.weight_bytes)
    monkeypatch.setattr(Checkpoint, "model", lambda *_args, **_options: pytest.fail("it was loaded"))
    found = profile(checkpoint, against=checkpoint, compute=Compute(device="cpu"))
    assert found.counts.parameters.total == checkpoint.parameters
    assert (found.speed, found.peak_bytes, found.against.speed) == ((), None, ())
    show_result(found)
    assert re.search(r"Not timed: the weights of both take .*B, and .*B are free on cpu\.", capsys.readouterr().out)
    assert found.to_dict()["untimed"] == found.untimed


def test_more_tokens_than_positions_are_refused(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(make("gpt2", tmp_path / "model"))
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(InputError, match="at most 64 tokens"):
        profile(checkpoint, timing=Timing(prompt=40, new_tokens=24))
    with pytest.raises(InputError, match="at most 64 tokens") as refused:
        profile(Checkpoint.open(tiny("llama")), against=checkpoint, timing=Timing((), prompt=65))
    assert refused.value.option == "prompt"
    assert profile(checkpoint, timing=Timing((), prompt=64)).counts.macs.tokens == 64


def test_a_ratio_of_one_run_has_no_interval_and_that_is_said(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    checkpoint = Checkpoint.open(tiny("llama"))
    show_result(profile(checkpoint, against=checkpoint, timing=Timing((1,), prompt=4, new_tokens=1, repeats=1)))
    shown = " ".join(capsys.readouterr().out.split())
    assert "from one run, without an interval" in shown
    assert re.search(r"decode, tokens/s, batch 1 [^└]*│ [\d.]+ │ │ peak", shown), "the ratio ends its row"
