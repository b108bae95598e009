"""Training by a clock: it ends in time, follows the machine's pace, and its record repeats it bit for bit."""

from itertools import pairwise

import pytest
import torch
from test_training import Line, data

from shortstack.healing import Schedule
from shortstack.healing.schedule import Course
from shortstack.healing.training import Environment, train
from shortstack.machine.clock import Clock

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
