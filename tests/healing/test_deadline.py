"""heal() by a clock: its samples, its record, and that this record repeats it."""

import json
import os
import signal

import pytest

import shortstack.decoder.own_text
from learning import weights
from shortstack.errors import ShortstackWarning
from shortstack.healing import HealingTask, Objective, Partial, Schedule, TrainingData, heal, healer
from shortstack.healing.healer import started_clock
from shortstack.healing.pacing import affordable_samples
from shortstack.machine.clock import Clock

pytestmark = pytest.mark.usefixtures("own_cache")
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
    return HealingTask(read, Partial(last=1), Objective(loss), Schedule(**TRAINING, **schedule), teacher)


def repeated(source, out, result, **how):
    """The run without a clock that a run by it asks for."""
    options = dict(result.repeat)
    return heal(source, out, task(samples=options.pop("max_samples"), **options, **how))


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
    again = repeated(source, tmp_path / "again", result)
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
    monkeypatch.setattr(healer, "forward_speed", None)  # amounts are those of the run that goes on
    result = heal(source, out, timed, resume=True)
    assert 300 < used + hands.at - 10_000 < 1.1 * 400
    repeated(source, tmp_path / "again", result)
    assert weights(tmp_path / "again") == weights(out)


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
    how = {"data": "pydoc,self=0.5,copying", "teacher": source, "loss": "distill"}
    with pytest.warns(ShortstackWarning, match="healing uses"):
        result = heal(source, tmp_path / "clocked", task(**how), clock=Clock(120, now=Ticking()))
    monkeypatch.setattr(shortstack.decoder.own_text, "generate", None)  # no more of it than was written
    repeated(source, tmp_path / "again", result, **how)
    assert weights(tmp_path / "again") == weights(tmp_path / "clocked")


@pytest.mark.parametrize(("speed", "least", "samples"), [(160, 1, 100), (1e9, 1, 200), (1e-9, 1, 1), (1e-9, 16, 16)])
def test_samples_are_limited_by_one_pass_of_them(speed, least, samples, source):
    data, clock = TrainingData("copying", max_length=32, max_samples=200), Clock(80, now=lambda: 0.0)
    how = {"speed": speed, "least": least, "own": None}
    assert affordable_samples(data, source.tokenizer(), clock, **how) == (samples, 200)
