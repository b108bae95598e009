"""Training and healing by a clock: they end in time, follow the machine, and their record repeats them bit for bit."""

import itertools
import json
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_training import Line, data

import shortstack.decoder.own_text
from learning import weights
from shortstack.data import Text
from shortstack.data.examples import _examples, shares
from shortstack.data.sources import own_file
from shortstack.data.tokens import bos_ids
from shortstack.errors import InputError, ShortstackWarning
from shortstack.healing import HealingTask, Objective, Partial, Schedule, TrainingData, heal, healer
from shortstack.healing.healer import Healing, started_clock
from shortstack.healing.pacing import affordable_samples
from shortstack.healing.preview import preview
from shortstack.healing.schedule import Course
from shortstack.healing.training import Environment, History, train
from shortstack.machine.clock import Clock

pytestmark = pytest.mark.usefixtures("own_cache")
SCHEDULE = Schedule(
    learning_rate=0.05, per_device_train_batch_size=8, warmup_steps=10, lr_scheduler_type="cosine", max_grad_norm=1e9
)


class Timed(Line):
    """A model that takes a second to train on a sample and a third of it to read one, times what `pace` says."""

    def __init__(self, pace=lambda _at: 1.0):
        super().__init__()
        self.at, self.pace, self.rates = 0.0, pace, []

    def now(self):
        return self.at

    def forward(self, x, **batch):
        self.at += self.pace(self.at) * len(x) / (1 if torch.is_grad_enabled() else 3)
        return super().forward(x=x, **batch)


EVEN = [[(float(number % 5 + 1), 3.0 * (number % 5 + 1))] for number in range(64)]  # a token each


def trained(folder, module, schedule=SCHEDULE, seconds=None, **place):
    clock = Clock(seconds, now=module.now) if seconds else None
    history = train(module, data(EVEN, EVEN[:6]), schedule, folder, environment=Environment(clock=clock, **place))
    return module.weight.item(), history


def repeated(folder, history):
    """The run that the options of a history ask for, without a clock."""
    options = {name: value for name, value in history.settings.items() if name != "minutes"}
    return trained(folder, Timed(), Schedule(**options))


def test_on_a_quiet_machine_there_is_one_plan_that_fills_the_time_and_its_rate_is_transformers_own(tmp_path):
    module, told = Timed(), []

    def tell(_stage, done, total, note):
        told.append((done, total, note))

    weight, history = trained(tmp_path / "clock", module, seconds=800, progress=tell)
    assert told[0][2].startswith("0:13:10 left, ")
    assert told[-1][0] == told[-1][1]
    assert 0.9 * 800 < module.at <= 800
    assert history.steps == history.settings["max_steps"] == (0.97 * 798 - 10 * 2) // 8 == 94
    assert (history.settings["replanned"], history.settings["minutes"], history.stopped) == (None, None, None)
    assert len(history.held_out) == 11, "before, and after each tenth"
    assert repeated(tmp_path / "again", history)[0] == weight


@pytest.mark.parametrize(
    "pace",
    [lambda at: 2.5 if at < 400 else 1.0, lambda at: 1.0 if at < 700 else 6.0, lambda at: 8.0 if at < 2 else 1.0],
    ids=["load ends", "load begins at the end", "a slow start"],
)
def test_the_rest_is_planned_anew_and_the_record_repeats_the_run_bit_for_bit(pace, tmp_path):
    module = Timed(pace)
    weight, history = trained(tmp_path / "clock", module, seconds=800)
    assert 0.85 * 800 < module.at <= 1.1 * 800
    assert history.settings["replanned"]
    assert len(history.settings["replanned"].split(",")) <= 20
    again, repeat = repeated(tmp_path / "again", history)
    assert again == weight
    assert repeat.held_out == history.held_out
    assert (repeat.steps, repeat.best) == (history.steps, history.best)


@pytest.mark.parametrize(("seconds", "steps", "used"), [(15, 1, 2 + 8 + 2), (9, 0, 2)])
def test_a_step_is_taken_only_where_there_is_time_for_it(seconds, steps, used, tmp_path):
    module = Timed()
    weight, history = trained(tmp_path / "clock", module, seconds=seconds)
    assert (history.steps, history.stopped) == (steps, "the time was up")
    assert module.at == used
    assert len(history.held_out) == 1 + steps
    assert weight == (repeated(tmp_path / "again", history)[0] if steps else 0.0)


def test_held_out_losses_that_take_long_are_fewer(tmp_path):
    module = Timed()
    clock = Clock(800, now=module.now)
    history = train(module, data(EVEN, EVEN[:60]), SCHEDULE, tmp_path, environment=Environment(clock=clock))
    assert len(history.held_out) == 1 + 3, "of 20 seconds each"
    assert module.at <= 800


def test_the_rate_never_jumps_and_ends_where_it_is_to_end():
    course = Course(100).changed(30, 50).changed(40, 200)
    assert str(course) == "30:100,40:50"
    shares = [course.share(step) for step in range(201)]
    assert shares[:31] == [step / 100 for step in range(31)]
    assert shares[40] == pytest.approx(0.3 + 0.7 / 2)
    assert shares[200] == 1
    steps = [after - before for before, after in pairwise(shares)]
    assert min(steps) > 0
    assert max(steps) == pytest.approx(0.7 / 20)


TRAINING = {"learning_rate": 1e-2, "per_device_train_batch_size": 8}


class Ticking:
    """A clock's hands that move by a second whenever somebody looks; by `slower` from some time on."""

    def __init__(self, slower=1.0, since=1e9):
        self.at, self.slower, self.since = 0.0, slower, since

    def __call__(self):
        self.at += 1.0 if self.at < self.since else self.slower
        return self.at


def task(*, data="pydoc", samples=None, held_out=None, teacher=None, loss="sft", **schedule):
    read = TrainingData(data, max_length=32, max_samples=samples, held_out=held_out)
    return HealingTask(read, Partial(train_last=1), Objective(loss), Schedule(**TRAINING, **schedule), teacher)


def healed_again(source, out, result, **how):
    """The run without a clock that a run by it asks for."""
    options = dict(result.repeat)
    return heal(source, out, task(samples=options.pop("max_samples"), **{**how, **options}))


def test_the_record_of_a_run_by_the_clock_repeats_it(source, tmp_path, monkeypatch):
    monkeypatch.setattr(healer, "forward_speed", lambda *_, **__: 32.0)
    hands = Ticking(slower=4.0, since=200)
    with pytest.warns(ShortstackWarning, match=r"healing uses \d+ of the [\d,]+ samples, as many as the time allows"):
        result = heal(source, tmp_path / "clocked", task(), clock=Clock(400, now=hands))
    assert hands.at < 1.1 * 400
    record = json.loads((tmp_path / "clocked" / "shortstack.json").read_text())["healing"]
    assert record["repeat"] == result.to_dict()["repeat"]
    assert record["samples"] == record["repeat"]["max_samples"] == pytest.approx(0.25 * 400, abs=5)
    assert "replanned" in record["repeat"]
    again = healed_again(source, tmp_path / "again", result)
    assert weights(tmp_path / "again") == weights(tmp_path / "clocked") != weights(source.directory)
    assert again.history.held_out == result.history.held_out
    assert again.to_dict()["repeat"] is None


def test_at_most_half_of_the_samples_there_is_time_for_are_held_out(source, tmp_path, monkeypatch):
    monkeypatch.setattr(healer, "forward_speed", lambda *_, **__: 32.0)
    hands = Ticking()
    with pytest.warns(ShortstackWarning, match="healing uses"):
        result = heal(source, tmp_path / "out", task(held_out=2000), clock=Clock(400, now=hands))
    assert hands.at < 1.1 * 400
    assert result.history.steps > 0
    assert result.repeat["held_out"] == result.repeat["max_samples"] // 2


def test_a_killed_run_goes_on_with_its_samples_and_the_time_it_has_left(source, tmp_path, monkeypatch):
    monkeypatch.setattr(healer, "forward_speed", lambda *_, **__: 32.0)
    out, hands = tmp_path / "out", Ticking()
    monkeypatch.setattr(healer, "Clock", lambda seconds, *, used: Clock(seconds, used=used, now=hands))
    timed = task(minutes=400 / 60)

    def interrupt(stage, done, _total, note=""):
        if stage == "healing" and done == 20:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(ShortstackWarning), pytest.raises(KeyboardInterrupt):
        heal(source, out, timed, progress=interrupt)
    used, hands.at = hands.at, 10_000.0
    assert preview(source, out, timed, resume=True).steps is None, "the same command may go on"
    monkeypatch.setattr(healer, "forward_speed", None)  # amounts are those of the run that goes on
    with pytest.raises(InputError, match=r"expected max_samples None, as when"):
        heal(source, out, task(minutes=400 / 60, samples=50), resume=True)
    hands.at = 10_000.0
    result = heal(source, out, timed, resume=True)
    assert 300 < used + hands.at - 10_000 < 1.1 * 400
    healed_again(source, tmp_path / "again", result)
    assert weights(tmp_path / "again") == weights(out)


@pytest.mark.parametrize(
    ("losses", "samples", "clocked", "gained"),
    [
        ((2.0, 1.5, 1.0, 0.991), 120, True, "0.9%"),
        ((2.0, 1.5, 1.0, 0.989), 120, True, None),  # it still falls
        ((2.0, 1.5, 1.0, 1.2), 120, True, "0.0%"),  # it rises again
        ((2.0, 1.5, 1.0, 0.991), 121, True, None),  # not all samples passed twice
        ((2.0, 1.5, 1.0, 0.991), 120, False, None),
        ((2.0, 2.1, 2.2, 2.3), 120, True, None),  # it healed nothing, which is said elsewhere
    ],
)
def test_a_run_by_the_clock_says_when_more_minutes_bring_nothing(losses, samples, clocked, gained):
    held_out = tuple(zip((0, 10, 20, 30), losses, strict=True))
    best = min(held_out, key=lambda entry: entry[1])[0]
    settings = {"learning_rate": 1e-4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    history = History((), held_out, (), 30, best, 0, None, 1.0, settings)
    repeat = {"max_steps": 30} if clocked else None
    healing = Healing(Path("out"), "lora", "sft", 1, history, samples, 1.0, 1, (), repeat)
    said = f"The last third of the steps lowered the held-out loss by {gained}: more minutes need more data."
    assert healing.plateau == (said if gained else None)
    assert (said in healing.table().notes) is bool(gained)


def test_minutes_are_counted_from_the_start(tmp_path):
    assert started_clock(Schedule(), tmp_path / "out") is None
    clock = started_clock(Schedule(minutes=2), tmp_path / "out", resume=True, used=30)
    assert clock.seconds == 120
    assert 30 <= clock.used < 31


def test_samples_that_the_teacher_writes_are_as_many_as_come_in_time(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shortstack.decoder.own_text, "BATCHES", (3, 4))
    for name, length in (("QUESTION_TOKENS", 12), ("ANSWER_TOKENS", 20), ("TEXT_TOKENS", 24)):
        monkeypatch.setattr(shortstack.decoder.own_text, name, length)
    monkeypatch.setattr(healer, "forward_speed", lambda *_, **__: 1e9)
    how = {"data": ["pydoc", "self=0.5", "copying"], "teacher": source, "loss": "distill"}
    with pytest.warns(ShortstackWarning, match=r"healing uses .* and less text of the teacher's own: pydoc, self=0\.0"):
        result = heal(source, tmp_path / "clocked", task(**how), clock=Clock(120, now=Ticking()))
    monkeypatch.setattr(shortstack.decoder.own_text, "generate", None)  # no more of it than was written
    healed_again(source, tmp_path / "again", result, **how)
    assert weights(tmp_path / "again") == weights(tmp_path / "clocked")
    assert result.repeat["data"]["self"] < 0.1, "it has less of it than was asked for"


@pytest.mark.parametrize(("speed", "least", "samples"), [(160, 1, 100), (1e9, 1, 200), (1e-9, 1, 1), (1e-9, 16, 16)])
def test_samples_are_limited_by_one_pass_of_them(speed, least, samples, source):
    data, clock = TrainingData("copying", max_length=32, max_samples=200), Clock(80, now=lambda: 0.0)
    how = {"speed": speed, "least": least, "write": None}
    assert affordable_samples(data, source.tokenizer(), clock, **how) == ("copying", samples, 200)


def test_of_data_without_an_end_no_more_is_read_than_passes_in_time(source, monkeypatch):
    """As of a hub data set of billions of rows; copying counts half as much."""
    rows, read = {"prompt": "What is it?", "completion": "It is a text of some words."}, []

    def endless(name, **_):
        for number in itertools.count():
            read.append(number)
            yield rows

    monkeypatch.setattr("shortstack.data.examples.shuffled_records", endless)
    data, clock = TrainingData(["org/endless", "copying=0.5"], max_length=64), Clock(80, now=lambda: 0.0)
    _, samples, whole = affordable_samples(data, source.tokenizer(), clock, speed=1000, least=1, write=None)
    length = len(_examples({**rows}, source.tokenizer(), 64)[0].ids)
    assert len(read) == 80 * 0.25 * 1000 // length + 2, "and one to know that there are more"
    assert whole is None, "nobody knows"
    assert samples == pytest.approx(80 * 0.25 * 1000 / ((length + 64 / 2) / 1.5), abs=2)
    monkeypatch.setattr(
        "shortstack.data.examples.shuffled_records",
        lambda name, **_: itertools.islice(endless(name), None if name == "org/endless" else 10),
    )
    both = replace(data, data=["org/endless", "org/few"])
    found = affordable_samples(both, source.tokenizer(), clock, speed=1000, least=1, write=None)
    assert found == ({"org/endless": 1.0, "org/few": 1.0}, 20, None), "the other source has no more"


@pytest.mark.parametrize(
    ("named", "windows", "of_each"),
    [
        (["self", "copying=0.5", "recall=0.5"], 100, {"self": 100, "copying": 50, "recall": 50}),
        (["self", "copying=0.5", "recall=0.5"], 30, {"self": 30, "copying": 85, "recall": 85}),
        (["self", "copying=0.5", "recall=0.5"], 1, {"self": 1, "copying": 99, "recall": 99}),
        (["self", "copying=0.5", "recall=0.5"], 0, {"self": 1, "copying": 99, "recall": 99}),
        ("self", 30, {"self": 30}),
    ],
)
def test_where_the_model_writes_little_the_other_sources_count_for_more(named, windows, of_each, source, own_cache):
    data = TrainingData(named, max_length=32, max_samples=200)
    room = 32 - len(bos_ids(source.tokenizer()))
    own_file("a" * 64).write_text(json.dumps({"ids": [5] * windows * room}))
    how = {"speed": 1e9, "least": 1, "write": lambda text, *_: text.replacing({"self": str(own_file("a" * 64))})}
    found, samples, whole = affordable_samples(data, source.tokenizer(), Clock(80, now=lambda: 0.0), **how)
    assert whole == 200
    shared = shares(Text(found).sources, {}, samples)
    assert shared == pytest.approx(of_each, abs=1)
    assert shared["self"] <= max(1, windows)
