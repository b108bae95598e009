"""What fits into the minutes, against the costs that the formula counts."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.errors import InputError
from shortstack.machine.clock import Clock
from shortstack.shrinking.budget import (
    CHOOSING,
    MEASURING,
    REPAIRING,
    WINDOW,
    Budget,
    Load,
    check_minutes,
    choosing_passes,
    fit,
    least_seconds,
    repair_passes,
)

SECONDS, SPEED = st.floats(60, 7200), st.floats(200, 50_000)


@given(SECONDS, SPEED, st.integers(8, 80))
def test_each_stage_takes_its_share_of_the_time_or_the_least_that_there_is(seconds, speed, layers):
    load, found = Load(tasks=3), fit(Budget(documents=200), seconds, speed=speed, layers=layers, load=Load(tasks=3))

    def taken(passes: float, growth: float = 1.0) -> float:
        return passes * WINDOW / speed * growth

    windows = found.windows * found.length / WINDOW * load.sources
    least = (found.windows, found.length, found.candidates) == (4, 32, 0)
    assert least or taken(choosing_passes(windows, found.candidates), layers / 30) <= CHOOSING * seconds + 1e-6
    few = found.repair_windows == 8 * load.repair_sources
    assert few or taken(repair_passes(found.repair_windows), layers / 30) <= REPAIRING * seconds + 1e-6
    assert found.perplexity_windows == 2 or taken(found.perplexity_windows * 4) <= MEASURING * seconds + 1e-6
    assert found.documents == 2 or taken(found.documents * 3 * 2.4) <= MEASURING * seconds + 1e-6


@given(SECONDS, SPEED)
def test_more_time_never_means_less(seconds, speed):
    one, other = (asdict(fit(Budget(), some, speed=speed, layers=30)) for some in (seconds, 2 * seconds))
    later = {name: value for name, value in other.items() if name not in ("windows", "length")}  # traded for candidates
    assert all(one[name] <= value for name, value in later.items())
    assert (
        one["candidates"] < other["candidates"] or one["windows"] * one["length"] <= other["windows"] * other["length"]
    )


def test_what_is_wanted_is_the_most_but_for_windows_where_there_are_more():
    assert fit(Budget(), 1e6, speed=1e4, layers=30) == Budget()
    assert fit(Budget(), 1e6, speed=1e4, layers=30, load=Load(most_windows=64)).windows == 64
    none = fit(Budget(probe_items=0, documents=0), 60, speed=100, layers=30)
    assert (none.probe_items, none.documents, none.own_text) == (0, 0, False)


def test_reduced_names_what_is_less_than_wanted():
    assert Budget(windows=8).reduced(Budget()) == {"windows": (8, 16)}
    assert Budget(windows=32).reduced(Budget()) == {}


def test_too_few_minutes_are_refused_with_a_number_that_is_enough():
    least = least_seconds(Budget(), speed=1000.0, layers=30, load=Load())
    ticks = {"now": lambda: 0.0}
    with pytest.raises(InputError, match=r"allow (\d+) minute") as refused:
        check_minutes(Clock(least - 1, **ticks), least)
    assert refused.value.option == "minutes"
    minutes = int(str(refused.value).split("allow ")[1].split()[0])
    check_minutes(Clock(60 * minutes, **ticks), least)
    assert 60 * (minutes - 1) < least
    assert least < least_seconds(Budget(), speed=1000.0, layers=30, load=Load(cuts=3))
    assert least > least_seconds(Budget(), speed=1000.0, layers=30, load=Load(heals=False))
