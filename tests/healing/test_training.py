"""The one loop: what it optimises, what it reports, how it stops and goes on."""

import itertools
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from shortstack.errors import InputError, TrainingError
from shortstack.healing import Schedule, training, unfinished
from shortstack.healing.learner import IGNORED, Data, Ordered, grouped
from shortstack.healing.schedule import DECAYS, OPTIMIZERS
from shortstack.healing.training import Environment, train


@pytest.fixture
def keeping_each_step(monkeypatch):
    monkeypatch.setattr(training, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(training, "SHARE", 1e9)


class Line(torch.nn.Module):
    """loss = mean over tokens of (w x - y)^2: training must find y / x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, y, labels, num_items_in_batch):
        losses = (self.weight * x - y) ** 2
        return {"loss": losses[labels != IGNORED].sum() / num_items_in_batch}


def collate(samples):
    """samples: lists of (x, y), one for each token."""
    longest = max(map(len, samples))
    filled = [[*sample, *[(0.0, 0.0)] * (longest - len(sample))] for sample in samples]
    labels = [[0] * len(sample) + [IGNORED] * (longest - len(sample)) for sample in samples]
    x, y = torch.tensor(filled).unbind(-1)
    return {"x": x, "y": y, "labels": torch.tensor(labels)}


SAMPLES = [[(float(number % 5 + 1), 3.0 * (number % 5 + 1))] * (number % 3 + 1) for number in range(64)]
SCHEDULE = Schedule(
    num_train_epochs=2,
    learning_rate=0.05,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    warmup_steps=0,
    max_grad_norm=1e9,
)


WANDERING = replace(SCHEDULE, num_train_epochs=4, learning_rate=0.2, eval_steps=1, lr_scheduler_type="constant")


def data(training=SAMPLES, held_out=None):
    return Data(training, training[:8] if held_out is None else held_out, list(map(len, training)), collate)


def trained(folder, schedule=SCHEDULE, some=None, module=None, **place):
    module = module or Line()
    history = train(module, some or data(), schedule, Path(folder), environment=Environment(**place))
    return module.weight.item(), history


@pytest.mark.parametrize(
    "named", [*({"lr_scheduler_type": name} for name in DECAYS), *({"optim": name} for name in OPTIMIZERS)], ids=str
)
def test_every_decay_and_optimizer_that_is_offered_trains(named, tmp_path):
    if named.get("optim", "").endswith("8bit"):
        pytest.importorskip("bitsandbytes")
    weight, history = trained(tmp_path, replace(SCHEDULE, max_steps=4, **named))
    assert abs(weight - 3) < 3
    assert history.held_out[-1][1] < history.held_out[0][1]


def test_an_optimizer_of_a_library_that_is_missing_is_refused(monkeypatch):
    monkeypatch.setattr("shortstack.machine.options.find_spec", lambda name: None)
    with pytest.raises(InputError, match="optim: expected bitsandbytes, which adamw_8bit is part of"):
        Schedule(optim="adamw_8bit").check()


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr_scheduler_type": "cosine_with_min_lr"},  # asks for more than a name
        {"optim": "lomo"},
        {"max_grad_norm": math.inf},
        {"per_device_train_batch_size": 0},
        {"seed": -1},
        {"learning_rate": math.nan},
        {"minutes": 5.0, "max_steps": 10},
        {"replanned": "3:5"},
        {"replanned": "3:5", "max_steps": 2},
        {"replanned": "5:3", "max_steps": 9},
        {"replanned": "3:5,3:6", "max_steps": 9},
        {"replanned": "3:0.5", "max_steps": 9},
        {"replanned": "", "max_steps": 9},
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Schedule(**wrong)


def by_hand(schedule, training, skipping=()):
    """The weight after the same steps by torch's own AdamW, batches whole; skipping: steps whose gradient is left out."""
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=schedule.learning_rate, weight_decay=0.0)
    steps = schedule.steps(len(training))
    for step in range(steps):
        epoch, place = divmod(step, schedule.epoch_steps(len(training)))
        order = grouped(list(map(len, training)), schedule.batch_size, seed=epoch)
        batch = order[place * schedule.batch_size : (place + 1) * schedule.batch_size]
        pairs = torch.tensor([pair for sample in batch for pair in training[sample]])
        optimizer.zero_grad()
        if step not in skipping:
            ((weight * pairs[:, 0] - pairs[:, 1]) ** 2).mean().backward()
            torch.nn.utils.clip_grad_norm_([weight], schedule.max_grad_norm)
        optimizer.param_groups[0]["lr"] = schedule.learning_rate * (1 - step / steps)
        optimizer.step()
    return weight.item()


@pytest.mark.parametrize("micro", [8, 4, 1])
def test_the_steps_are_adamws_on_whole_batches_however_they_are_divided(micro, tmp_path):
    seen = []
    weight, history = trained(
        tmp_path,
        replace(SCHEDULE, per_device_train_batch_size=micro, gradient_accumulation_steps=8 // micro),
        progress=lambda _stage, done, total, note: seen.append((done, total, note)),
    )
    assert history.best == history.steps == 16
    assert weight == pytest.approx(by_hand(SCHEDULE, SAMPLES), abs=1e-6)
    assert seen[-1][:2] == (16, 16)
    assert seen[-1][2].endswith(" tokens/s")
    assert history.tokens_per_s > 0
    tokens = [pair for sample in SAMPLES[:8] for pair in sample]
    assert history.held_out[0] == (0, pytest.approx(sum(y * y for _, y in tokens) / len(tokens)))
    assert history.losses[0][1] > history.losses[-1][1]


def test_batches_hold_samples_of_alike_length_and_an_epoch_every_sample_once():
    lengths = [(7 * number) % 64 for number in range(203)]
    order = grouped(lengths, 8, seed=3)
    assert sorted(order) == list(range(203))
    batches = [[lengths[sample] for sample in order[start : start + 8]] for start in range(0, 203, 8)]
    assert sum(max(batch) - min(batch) for batch in batches[:-1]) / 25 < 16  # of 64
    assert [max(batch) for batch in batches] != sorted(max(batch) for batch in batches)
    assert order != grouped(lengths, 8, seed=4)


def test_tokens_that_passed_are_those_of_whole_steps_not_of_what_was_fetched_ahead():
    lengths = [number % 7 + 1 for number in range(40)]
    samples = Ordered(Data(range(40), (), lengths, lambda _samples: {}), 8, seed=0)
    given = [samples[index] for index in range(24)]
    assert samples.tokens(16) == sum(lengths[sample] for sample in given[:16])
    assert samples.tokens(40) == samples.handed[-1] == sum(lengths[sample] for sample in given)


def test_speed_counts_the_tokens_of_whole_steps(tmp_path, monkeypatch):
    seconds = itertools.chain([0.0], itertools.repeat(10.0))
    clock = SimpleNamespace(perf_counter=seconds.__next__, monotonic=time.monotonic)
    monkeypatch.setattr(training, "time", clock)
    _, history = trained(tmp_path, replace(SCHEDULE, max_steps=2), data([[(1.0, 3.0)] * 5] * 64))
    assert history.tokens_per_s == 2 * 8 * 5 / 10


def test_matrices_decay_and_norms_do_not_whatever_they_are_called(tmp_path):
    class Decaying(Line):
        def __init__(self):
            super().__init__()
            self.trained = torch.nn.ModuleList([torch.nn.RMSNorm(3), torch.nn.Linear(3, 2)])
            torch.nn.init.ones_(self.trained[1].bias)
            self.experts_bias = torch.nn.Parameter(torch.ones(2, 3))

        def forward(self, **batch):
            found = super().forward(**batch)
            return {"loss": found["loss"] + 0 * sum(weight.sum() for weight in self.parameters())}

    module = Decaying()
    before = module.trained[1].weight.detach().clone()
    trained(tmp_path, replace(SCHEDULE, weight_decay=0.1), module=module)
    norm, (matrix, bias) = module.trained[0].weight, module.trained[1].parameters()
    assert torch.equal(norm, torch.ones(3))
    assert torch.equal(bias, torch.ones(2))
    assert torch.equal(module.experts_bias, torch.ones(2, 3))
    assert (matrix.abs() < before.abs()).all()


@pytest.mark.usefixtures("keeping_each_step")
def test_a_signal_between_the_passes_of_a_step_keeps_the_state_before_it_once(tmp_path, monkeypatch):
    """Killed while a whole state is written again, a run would have lost it: earlier states have gone by then."""
    written = []
    save = training.Trainer._save_checkpoint
    monkeypatch.setattr(
        training.Trainer,
        "_save_checkpoint",
        lambda loop, *args, **options: written.append(loop.state.global_step) or save(loop, *args, **options),
    )

    class Interrupted(Line):
        passes, ended = 0, 0

        def forward(self, **batch):
            self.passes += self.training
            if self.passes == 7:  # the first of two passes of step 4; the state after step 3 has just been kept
                os.kill(os.getpid(), signal.SIGINT)
            self.ended += self.training
            return super().forward(**batch)

    module = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "left", module=module)
    assert module.ended == 6, "a pass is left at once"
    assert written == [1, 2, 3]
    assert [path.name for path in (tmp_path / "left").glob("checkpoint-*")] == ["checkpoint-3"]
    assert training.newest_state(tmp_path / "left").name == "checkpoint-3"
    assert trained(tmp_path / "left")[0] == trained(tmp_path / "whole")[0]


def test_a_signal_whose_handler_only_takes_note_ends_the_run_nonetheless(tmp_path):
    """As job schedulers' handlers do: half a training is no finished model."""

    class Interrupted(Line):
        passes = 0

        def forward(self, **batch):
            self.passes += self.training
            if self.passes == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(**batch)

    noted = []
    signal.signal(signal.SIGINT, lambda *_: noted.append(True))  # a fixture puts the earlier one back
    with pytest.raises(SystemExit) as ended:
        trained(tmp_path / "left", module=Interrupted())
    assert (noted, ended.value.code) == ([True], 128 + signal.SIGINT)
    assert trained(tmp_path / "left")[0] == trained(tmp_path / "whole")[0]


def test_writing_states_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    now, saved, save = [0.0], [], training.Trainer._save_checkpoint
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter))

    def slow(loop, *args, **how):
        now[0] += 30.0
        saved.append(loop.state.global_step)
        return save(loop, *args, **how)

    class Slow(Line):
        def forward(self, **batch):
            now[0] += 30.5 * self.training  # two passes a step
            return super().forward(**batch)

    monkeypatch.setattr(training.Trainer, "_save_checkpoint", slow)
    trained(tmp_path, module=Slow())
    assert saved == [1, 11], "600 seconds between two that take 30"


@pytest.mark.parametrize("at", [1, 5])
def test_a_signal_in_the_first_or_last_held_out_loss_loses_it_not_and_no_step_is_taken_more(at, tmp_path):
    """Passes 1 and 2 are of the loss before training, 5 and 6 of that after its last step, in the middle of an epoch."""
    schedule = replace(SCHEDULE, max_steps=5, eval_steps=0.5)

    class Interrupted(Line):
        passes = 0

        def forward(self, **batch):
            self.passes += not self.training
            if self.passes == at and not self.training:
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(**batch)

    whole = trained(tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "left", schedule, module=Interrupted())
    weight, history = trained(tmp_path / "left", schedule)
    assert (weight, history.held_out, history.steps) == (whole[0], whole[1].held_out, 5)


@pytest.mark.usefixtures("keeping_each_step")
def test_earlier_states_stay_until_a_new_one_is_marked_whole(tmp_path, monkeypatch):
    marked = Path.touch

    def failing(path, *args, **options):
        if path.name == unfinished.COMPLETE and path.parent.name == "checkpoint-4":
            raise OSError(28, "No space left on device")
        return marked(path, *args, **options)

    monkeypatch.setattr(Path, "touch", failing)
    with pytest.raises(OSError, match="No space"):
        trained(tmp_path / "left")
    assert training.newest_state(tmp_path / "left").name == "checkpoint-3"
    monkeypatch.undo()
    assert trained(tmp_path / "left")[0] == trained(tmp_path / "whole")[0]


def test_a_step_whose_gradient_is_no_number_is_left_out(tmp_path):
    broken = [*SAMPLES[:20], [(math.inf, 1.0)], *SAMPLES[21:]]
    some = data(broken, SAMPLES[:8])
    weight, history = trained(tmp_path, SCHEDULE, some)
    lengths = list(map(len, broken))
    skipping = {epoch * 8 + grouped(lengths, 8, seed=epoch).index(20) // 8 for epoch in range(2)}
    assert history.skipped == 2
    assert history.stopped is None
    assert weight == pytest.approx(by_hand(SCHEDULE, broken, skipping), abs=1e-6)
    assert all(math.isfinite(loss) for _, loss in history.losses)


def test_training_stops_after_so_many_and_has_the_last_good_weights(tmp_path):
    class Breaking(Line):
        passes = 0

        def forward(self, **batch):
            self.passes += self.training
            found = super().forward(**batch)
            return {"loss": found["loss"] * (math.nan if self.training and self.passes > 20 else 1)}

    weight, history = trained(tmp_path, replace(SCHEDULE, num_train_epochs=5), module=Breaking())
    assert history.stopped == "10 steps in a row without a finite gradient"
    assert history.steps == 10 + 10
    assert history.skipped == 10
    assert 0 < history.best <= 20
    assert math.isfinite(weight)
    assert weight != 0


def test_without_any_good_weights_there_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="without a finite gradient"):
        trained(tmp_path, replace(SCHEDULE, num_train_epochs=3), data([[(math.inf, 1.0)]] * 64, SAMPLES[:8]))


def test_the_weights_of_the_lowest_held_out_loss_win(tmp_path):
    wanting_one = [[(1.0, 1.0)]] * 4  # training goes on to 3
    weight, history = trained(tmp_path / "one", WANDERING, data(held_out=wanting_one))
    steps, losses = zip(*history.held_out, strict=True)
    assert steps == tuple(range(33))
    assert history.best == steps[losses.index(min(losses))]
    assert 0 < history.best < 16
    assert (weight - 1) ** 2 == pytest.approx(min(losses))
    wanting_none = data(held_out=[[(1.0, 0.0)]] * 4)  # 0, from where it starts
    weight, history = trained(tmp_path / "none", replace(WANDERING, early_stopping_patience=3), wanting_none)
    assert (weight, history.best, history.steps) == (0.0, 0, 3)


def test_the_best_weights_are_those_of_their_step_where_a_killed_run_had_gone_further(tmp_path):
    some = data(held_out=[[(1.0, 1.0)]] * 4)  # the weight passes 1 at step 5

    def stopping(at, error):
        def progress(_stage, done, _total, note):
            if done == at:
                error()

        return progress

    def killed():
        raise MemoryError  # no state is kept

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, WANDERING, some, progress=stopping(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(MemoryError):
        trained(tmp_path, WANDERING, some, progress=stopping(7, killed))
    weight, history = trained(tmp_path, replace(WANDERING, max_steps=3), some)  # as where the time is over
    assert (history.best, history.steps) == (3, 3)
    assert (weight - 1) ** 2 == pytest.approx(dict(history.held_out)[3])
    assert len([*tmp_path.glob("best-*")]) == 2


@pytest.mark.parametrize("after", [2, 3], ids=["before it ends", "at its end"])
def test_patience_ends_training_early_and_goes_on_counting_after_a_kill(after, tmp_path):
    schedule, some = replace(WANDERING, early_stopping_patience=3), data(held_out=[[(1.0, 1.0)]] * 4)
    _, whole = trained(tmp_path / "whole", schedule, some)
    assert whole.steps == whole.best + 3 < 32
    assert whole.stopped == "3 held-out losses in a row without a lower one"

    def interrupt(_stage, done, _total, note):
        if done == whole.best + after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "left", schedule, some, progress=interrupt)
    for _ in range(2):  # the second time as where a kill came before the output was whole
        again = trained(tmp_path / "left", schedule, some)[1]
        assert (again.steps, again.held_out, again.stopped) == (whole.steps, whole.held_out, whole.stopped)


def test_where_memory_runs_out_the_micro_batch_is_halved_and_the_steps_stay_the_same(tmp_path):
    class Small(Line):
        passes = 0

        def forward(self, x, **batch):
            self.passes += self.training
            if self.training and self.passes > 10 and len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().forward(x=x, **batch)

    stages = []
    weight, history = trained(
        tmp_path / "small", module=Small(), progress=lambda stage, _done, _total, note: stages.append(stage)
    )
    assert history.settings["per_device_train_batch_size"] == 2
    assert list(dict.fromkeys(stages)) == ["healing", "healing, 2 samples at once"]
    assert len(stages) == history.steps == 16
    assert weight == pytest.approx(by_hand(SCHEDULE, SAMPLES), abs=1e-6)


def test_memory_that_not_even_one_sample_fits_is_an_error(tmp_path):
    class Full(Line):
        def forward(self, **batch):
            if self.training:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().forward(**batch)

    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path, replace(SCHEDULE, per_device_train_batch_size=1), module=Full())


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"max_steps": 21}, 21),
        ({"num_train_epochs": 0.5}, 4),
        ({"per_device_train_batch_size": 17, "gradient_accumulation_steps": 1}, 8),
    ],
    ids=str,
)
def test_so_many_steps_are_taken_and_a_held_out_loss_ends_them(length, steps, tmp_path):
    """Of 64 samples in batches of 8, twice; max_steps whatever the epochs say."""
    schedule = replace(SCHEDULE, **length)
    _, history = trained(tmp_path, schedule)
    assert history.steps == schedule.steps(64) == steps
    assert history.held_out[-1][0] == steps
