"""The one loop: what it optimises, what it reports, how it stops and goes on."""

import math
from dataclasses import replace

import pytest
import torch

from shortstack.errors import InputError, TrainingError
from shortstack.healing import HealingConfig, training
from shortstack.healing.budget import Deadline
from shortstack.healing.config import DECAYS, OPTIMIZERS
from shortstack.healing.learner import IGNORED, Data, grouped
from shortstack.healing.resuming import STATE, last_checkpoint
from shortstack.healing.training import train
from shortstack.machine.clock import Clock


class Line(torch.nn.Module):
    """loss = mean over tokens of (w x - y)^2: training must find y / x. hook(number of the training pass)."""

    def __init__(self, hook=lambda number: None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.passes, self.hook = 0, hook

    def forward(self, x, y, labels, num_items_in_batch):
        if self.training:
            self.passes += 1
            self.hook(self.passes)
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
CONFIG = HealingConfig(
    "pydoc",
    num_train_epochs=2,
    learning_rate=0.05,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    warmup_steps=0,
    max_grad_norm=1e9,
)
WANDERING = replace(CONFIG, num_train_epochs=4, learning_rate=0.2, eval_steps=1, lr_scheduler_type="constant")
WANTING_ONE = [[(1.0, 1.0)]] * 4  # training goes on to 3


def data(samples=SAMPLES, held_out=None):
    return Data(samples, samples[:8] if held_out is None else held_out, list(map(len, samples)), collate)


def trained(folder, config=CONFIG, some=None, module=None, **place):
    module = module or Line()
    history = train(module, some or data(), config, folder, **place)
    return module.weight.item(), history


def by_hand(config, samples, skipping=()):
    """The weight after the same steps by torch's own AdamW, batches whole; skipping: steps whose gradient is left out."""
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=config.learning_rate, weight_decay=0.0)
    steps = config.steps(len(samples))
    for step in range(steps):
        epoch, place = divmod(step, config.epoch_steps(len(samples)))
        order = grouped(list(map(len, samples)), config.batch_size, seed=epoch)
        batch = order[place * config.batch_size : (place + 1) * config.batch_size]
        pairs = torch.tensor([pair for sample in batch for pair in samples[sample]])
        optimizer.zero_grad()
        if step not in skipping:
            ((weight * pairs[:, 0] - pairs[:, 1]) ** 2).mean().backward()
            torch.nn.utils.clip_grad_norm_([weight], config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - step / steps)
        optimizer.step()
    return weight.item()


@pytest.mark.parametrize(
    "named", [*({"lr_scheduler_type": name} for name in DECAYS), *({"optim": name} for name in OPTIMIZERS)], ids=str
)
def test_every_decay_and_optimizer_trains(named, tmp_path):
    if named.get("optim", "").endswith("8bit"):
        pytest.importorskip("bitsandbytes")
    weight, history = trained(tmp_path, replace(CONFIG, max_steps=4, **named))
    assert abs(weight - 3) < 3
    assert history.held_out[-1][1] < history.held_out[0][1]


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
        {"top_k": 3},
    ],
    ids=str,
)
def test_wrong_config_is_refused(wrong):
    with pytest.raises(InputError) as refused:
        HealingConfig("pydoc", **wrong)
    assert refused.value.option == next(iter(wrong))


@pytest.mark.parametrize("micro", [8, 4, 1])
def test_steps_are_adamws_on_whole_batches_however_they_are_divided(micro, tmp_path):
    seen = []
    config = replace(CONFIG, per_device_train_batch_size=micro, gradient_accumulation_steps=8 // micro)
    weight, history = trained(tmp_path, config, progress=lambda _stage, done, total, note: seen.append((done, total)))
    assert history.best == history.steps == 16
    assert weight == pytest.approx(by_hand(CONFIG, SAMPLES), abs=1e-6)
    assert seen[-1] == (16, 16)
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


def test_matrices_decay_and_norms_do_not(tmp_path):
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
    trained(tmp_path, replace(CONFIG, weight_decay=0.1), module=module)
    norm, (matrix, bias) = module.trained[0].weight, module.trained[1].parameters()
    for kept in (norm, bias, module.experts_bias):
        assert torch.equal(kept, torch.ones_like(kept))
    assert (matrix.abs() < before.abs()).all()


def test_step_without_finite_gradient_is_skipped(tmp_path):
    broken = [*SAMPLES[:20], [(math.inf, 1.0)], *SAMPLES[21:]]
    weight, history = trained(tmp_path, CONFIG, data(broken, SAMPLES[:8]))
    lengths = list(map(len, broken))
    skipping = {epoch * 8 + grouped(lengths, 8, seed=epoch).index(20) // 8 for epoch in range(2)}
    assert (history.skipped, history.stopped) == (2, None)
    assert weight == pytest.approx(by_hand(CONFIG, broken, skipping), abs=1e-6)
    assert all(math.isfinite(loss) for _, loss in history.losses)


def test_training_stops_after_ten_skipped_steps_with_the_last_good_weights(tmp_path):
    class Breaking(Line):
        def forward(self, **batch):
            found = super().forward(**batch)
            return {"loss": found["loss"] * (math.nan if self.training and self.passes > 20 else 1)}

    weight, history = trained(tmp_path, replace(CONFIG, num_train_epochs=5), module=Breaking())
    assert history.stopped
    assert (history.steps, history.skipped) == (20, 10)
    assert 0 < history.best <= 20
    assert math.isfinite(weight)
    with pytest.raises(TrainingError):
        trained(tmp_path / "all", replace(CONFIG, num_train_epochs=3), data([[(math.inf, 1.0)]] * 64, SAMPLES[:8]))


def test_weights_with_the_lowest_held_out_loss_are_kept(tmp_path):
    weight, history = trained(tmp_path / "one", WANDERING, data(held_out=WANTING_ONE))
    steps, losses = zip(*history.held_out, strict=True)
    assert steps == tuple(range(33))
    assert history.best == steps[losses.index(min(losses))]
    assert 0 < history.best < 16
    assert (weight - 1) ** 2 == pytest.approx(min(losses))
    wanting_none = data(held_out=[[(1.0, 0.0)]] * 4)  # 0, from where it starts
    weight, history = trained(tmp_path / "none", replace(WANDERING, early_stopping_patience=3), wanting_none)
    assert (weight, history.best, history.steps) == (0.0, 0, 3)


@pytest.fixture
def saving_each_step(monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e9)


def interrupting(at):
    def progress(_stage, done, _total, note):
        if done == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.usefixtures("saving_each_step")
@pytest.mark.parametrize("at", [1, 7, 16])
def test_interrupted_run_goes_on_and_ends_in_the_same_weights(at, tmp_path):
    """The progress of step 7 comes before its checkpoint: the run goes on from step 6."""
    weight, whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "left", progress=interrupting(at))
    steps = []
    again, history = trained(tmp_path / "left", progress=lambda _stage, done, _total, note: steps.append(done))
    assert (again, history.held_out, history.steps) == (weight, whole.held_out, 16)
    assert steps[0] == at
    assert len([*(tmp_path / "left").glob("checkpoint-*")]) == 1, "earlier ones go"


@pytest.mark.usefixtures("saving_each_step")
def test_checkpoint_that_was_not_written_to_its_end_is_ignored(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "left", progress=interrupting(7))
    (tmp_path / "left" / "checkpoint-6").rename(tmp_path / "left" / "checkpoint-5")
    partial = tmp_path / "left" / "checkpoint-9"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path / "left").name == "checkpoint-5"
    assert (tmp_path / "left" / "checkpoint-5" / STATE).exists()


@pytest.mark.usefixtures("saving_each_step")
def test_best_weights_of_a_resumed_run_are_those_of_its_checkpoint(tmp_path):
    """The interrupted run had gone further, to weights that its continuation does not reach."""
    some = data(held_out=WANTING_ONE)  # the weight passes 1 at step 5
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, WANDERING, some, progress=interrupting(4))
    training.SAVE_SECONDS = 1e9  # a fixture puts it back
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, WANDERING, some, progress=interrupting(7))
    weight, history = trained(tmp_path, replace(WANDERING, max_steps=3), some)
    assert (history.best, history.steps) == (3, 3)
    assert (weight - 1) ** 2 == pytest.approx(dict(history.held_out)[3])


@pytest.mark.usefixtures("saving_each_step")
def test_patience_ends_training_and_counts_on_after_an_interruption(tmp_path):
    config, some = replace(WANDERING, early_stopping_patience=3), data(held_out=WANTING_ONE)
    _, whole = trained(tmp_path / "whole", config, some)
    assert whole.steps == whole.best + 3 < 32
    assert whole.stopped
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "left", config, some, progress=interrupting(whole.best + 2))
    for _ in range(2):  # the second time after an interruption before the output was written
        again = trained(tmp_path / "left", config, some)[1]
        assert (again.steps, again.held_out, again.stopped) == (whole.steps, whole.held_out, whole.stopped)


def test_on_oom_the_micro_batch_is_halved_and_the_steps_stay_the_same(tmp_path):
    class Small(Line):
        def forward(self, x, **batch):
            if self.training and self.passes > 9 and len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().forward(x=x, **batch)

    stages = []
    show = lambda stage, _done, _total, note: stages.append(stage)  # noqa: E731
    weight, history = trained(tmp_path / "small", module=Small(), progress=show)
    assert history.batch == 2
    assert [*dict.fromkeys(stages)] == ["healing", "healing, 2 samples at once"]
    assert len(stages) == history.steps == 16
    assert weight == pytest.approx(by_hand(CONFIG, SAMPLES), abs=1e-6)

    def full(_number):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path / "full", module=Line(full))


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"max_steps": 21}, 21),
        ({"num_train_epochs": 0.5}, 4),
        ({"per_device_train_batch_size": 17, "gradient_accumulation_steps": 1}, 8),
    ],
    ids=str,
)
def test_number_of_steps_and_a_held_out_loss_at_their_end(length, steps, tmp_path):
    """Of 64 samples in batches of 8, twice; max_steps overrides the epochs."""
    config = replace(CONFIG, **length)
    _, history = trained(tmp_path, config)
    assert history.steps == config.steps(64) == steps
    assert history.held_out[-1][0] == steps


class Timed(Line):
    """Takes a second to train on a sample and a third of it to evaluate one, times pace(seconds so far)."""

    def __init__(self, pace=lambda _at: 1.0):
        super().__init__()
        self.at, self.pace, self.rates = 0.0, pace, []

    def forward(self, x, **batch):
        self.at += self.pace(self.at) * len(x) / (1 if torch.is_grad_enabled() else 3)
        return super().forward(x=x, **batch)


EVEN = data([[(float(number % 5 + 1), 3.0 * (number % 5 + 1))] for number in range(64)])  # a token each
TIMED = replace(CONFIG, per_device_train_batch_size=8, gradient_accumulation_steps=1, warmup_steps=10)


def timed(folder, module, seconds, config=TIMED, began=None, **place):
    clock = Clock(seconds, now=lambda: module.at)
    deadline = Deadline(clock, step=8.0, began=began)
    return train(module, EVEN, config, folder, deadline=deadline, **place)


@pytest.mark.parametrize(
    "pace",
    [
        lambda _at: 1.0,
        lambda at: 2.5 if at < 400 else 1.0,
        lambda at: 1.0 if at < 700 else 6.0,
        lambda at: 8.0 if at < 2 else 1.0,
    ],
    ids=["even", "load ends", "load begins at the end", "slow start"],
)
def test_deadline_is_kept_and_held_out_losses_are_taken_at_thirds(pace, tmp_path):
    module = Timed(pace)
    history = timed(tmp_path, module, 800)
    assert 0.85 * 800 < module.at <= 1.1 * 800
    assert [step for step, _ in history.held_out][:: len(history.held_out) - 1] == [0, history.steps]
    assert len(history.held_out) == 4
    assert history.best > 0
    assert history.stopped is None


def test_learning_rate_follows_the_share_of_the_time(tmp_path, monkeypatch):
    module, rates, step_begin = Timed(), [], training._Rules.on_step_begin

    def noting(rules, *args, optimizer, **rest):
        step_begin(rules, *args, optimizer=optimizer, **rest)
        rates.append((module.at / 800, optimizer.param_groups[0]["lr"] / TIMED.learning_rate))

    monkeypatch.setattr(training._Rules, "on_step_begin", noting)
    timed(tmp_path, module, 800)
    for share, rate in rates:
        middle = share + 4 / 800
        assert rate == pytest.approx(min(middle / 0.1, (1 - middle) / 0.9), abs=0.01)
    assert rates[-1][1] < 0.04


def test_run_without_time_for_a_step_is_an_error(tmp_path):
    module = Timed()
    with pytest.raises(TrainingError):
        timed(tmp_path, module, 9)
    assert timed(tmp_path / "one", Timed(), 16).steps == 1


@pytest.mark.usefixtures("saving_each_step")
def test_interrupted_run_goes_on_in_the_time_that_is_left(tmp_path):
    training.SAVE_SECONDS = -1e9  # also in the last minute; a fixture puts it back
    module = Timed()

    def interrupt(_stage, done, _total, note):
        if done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path, module, 800, progress=interrupt)
    again = Timed()
    again.at = module.at
    clock = Clock(800, used=module.at, now=lambda: again.at)
    history = train(again, EVEN, TIMED, tmp_path, deadline=Deadline(clock, step=8.0, began=0.0))
    assert 0.9 * 800 < again.at <= 800
    assert history.steps > 80
