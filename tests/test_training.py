"""The one loop: what it optimises, what it reports, and how it stops."""

import pytest
import torch

from shortstack.errors import InputError, TrainingError
from shortstack.training import Schedule, train


class Line(torch.nn.Module):
    """loss = mean (w x - 3 x)^2: training must find w = 3."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return {"loss": ((self.weight * x - 3 * x) ** 2).mean()}


def collate(samples):
    return {"x": torch.tensor(samples)}


SAMPLES = [float(number % 5 + 1) for number in range(64)]


def test_training_finds_the_minimum_and_reports_the_way_there():
    module, seen = Line(), []
    schedule = Schedule(epochs=20, lr=0.1, batch_size=8, micro_batch_size=4, warmup_steps=0)
    history = train(
        module, SAMPLES, SAMPLES[:8], collate, schedule, progress=lambda _stage, done, total: seen.append((done, total))
    )
    assert module.weight.item() == pytest.approx(3, abs=0.05)
    assert history.steps == schedule.steps(64) == 160
    assert seen[-1] == (160, 160)
    assert history.held_out[0] == (0.0, pytest.approx(9 * sum(x * x for x in SAMPLES[:8]) / 8))
    assert history.held_out[-1][1] < 0.1
    assert history.losses[0][1] > history.losses[-1][1]


def test_the_same_seed_gives_the_same_weights():
    found = []
    for _ in range(2):
        module = Line()
        train(module, SAMPLES, SAMPLES[:8], collate, Schedule(epochs=1, lr=0.05, batch_size=4, micro_batch_size=4))
        found.append(module.weight.item())
    assert found[0] == found[1] != 0


def test_a_loss_that_is_no_number_stops_training():
    with pytest.raises(TrainingError, match="finite loss"):
        train(
            Line(),
            [float("inf")] * 8,
            SAMPLES[:8],
            collate,
            Schedule(epochs=1, lr=0.1, batch_size=4, micro_batch_size=4),
        )


def test_less_than_an_epoch_still_ends_with_a_held_out_loss():
    history = train(
        Line(), SAMPLES, SAMPLES[:8], collate, Schedule(epochs=0.5, lr=0.1, batch_size=8, micro_batch_size=8)
    )
    assert history.steps == 4
    assert history.held_out[-1][0] > 0


@pytest.mark.parametrize(("batch", "micro"), [(16, 16), (24, 12), (17, 1), (40, 10), (7, 7), (64, 16)])
def test_a_batch_is_as_large_as_it_is_said_to_be(batch, micro):
    schedule = Schedule(epochs=1, lr=0.1, batch_size=batch)
    assert schedule.micro == micro
    history = train(Line(), SAMPLES, SAMPLES[:8], collate, schedule)
    assert history.steps == schedule.steps(64) == -(-64 // batch)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 8, "micro_batch_size": 3}, {"seed": -1}])
def test_a_schedule_of_impossible_numbers_is_refused(wrong):
    with pytest.raises(InputError, match=r"--batch-size|--seed"):
        Schedule(**wrong)


@pytest.mark.parametrize("wrong", [{"lr": float("nan")}, {"lr": 0.0}, {"epochs": -1.0}, {"epochs": float("inf")}])
def test_a_schedule_that_cannot_be_followed_is_refused(wrong):
    with pytest.raises(InputError, match="above 0"):
        Schedule(**wrong)
