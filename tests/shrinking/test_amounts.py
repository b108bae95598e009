"""The amounts that fit into the minutes, by one rate and the table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.data.mixture import MIX, READ, parse_sources
from shortstack.errors import InputError
from shortstack.machine.clock import Clock
from shortstack.shrinking.clock import LEVELS, Amounts, amounts_for, check_minutes, least_passes


@given(st.floats(1, 1e5), st.floats(1, 1e5), st.floats(1, 3))
def test_more_time_is_never_less_of_anything(seconds, rate, factor):
    less, more = (amounts_for(each, Amounts(), rate=rate, layers=30) for each in (seconds, factor * seconds))
    for name in ("windows", "length", "finalists", "repair", "judged", "probe_items", "documents"):
        assert getattr(less, name) <= getattr(more, name)
    assert more.windows >= LEVELS[-1].windows
    assert amounts_for(1e9, Amounts(), rate=rate, layers=30) == Amounts()


def test_what_is_asked_for_is_never_exceeded_and_what_is_not_asked_for_stays_out():
    wanted = Amounts(windows=5, finalists=0, repair=20, judged=7, probe_items=0, documents=3)
    assert amounts_for(1e9, wanted, rate=1e6, layers=30) == wanted
    assert amounts_for(1.0, wanted, rate=1.0, layers=30).probe_items == 0
    assert amounts_for(1.0, wanted, rate=1.0, layers=30).judged == 2


def test_with_hours_more_windows_are_chosen_on_than_are_wanted_as_far_as_there_are_any():
    hours = [amounts_for(each, Amounts(), rate=2000.0, layers=30, most=100) for each in (900.0, 2400.0, 3600.0, 1e9)]
    assert [each.windows for each in hours] == [16, 32, 64, 100]
    assert hours[-1].less(Amounts()) == []
    assert amounts_for(1e9, Amounts(), rate=2000.0, layers=30, most=8).windows == 16, "wanted is had in any case"
    five = amounts_for(900.0, Amounts(text="mix,notes.txt"), rate=2000.0, layers=30, most=100)
    assert five.windows == 8, "five texts take longer"


def test_the_text_that_the_model_writes_is_shared_by_all_cuts():
    texts = [amounts_for(100.0, Amounts(), rate=900.0, layers=30, cuts=cuts).text for cuts in (1, 2)]
    assert texts == [READ, MIX]


def test_repair_has_a_share_of_the_minutes_of_its_own():
    """The fit of every weight gains by windows long after the choice of layers has enough of them."""
    fitting = amounts_for(300.0, Amounts(), rate=1200.0, layers=30)
    passes = 0.2 * 300.0 * 1200.0 / 128
    assert fitting.windows == 8
    assert 0 <= (passes - 97) / 3 - fitting.repair < 4  # as many of each of four texts


def test_what_there_is_less_of_is_said():
    assert Amounts(windows=4).less(Amounts()) == ["calibration windows of each text: 4 instead of 16"]
    assert Amounts().less(Amounts()) == []


def test_minutes_in_which_nothing_can_be_chosen_are_refused():
    least = least_passes(4) * 128 / 1000.0
    check_minutes(Clock(least + 1, now=lambda: 0.0), 1000.0, 30)
    with pytest.raises(InputError, match="minutes: expected at least"):
        check_minutes(Clock(least - 1, now=lambda: 0.0), 1000.0, 30)
    with pytest.raises(InputError, match="minutes"):
        check_minutes(Clock(least + 1, used=2.0, now=lambda: 0.0), 1000.0, 30)
    with pytest.raises(InputError, match="minutes"):
        check_minutes(Clock(least + 1, now=lambda: 0.0), 1000.0, 30, cuts=2)
    with pytest.raises(InputError, match="minutes"):
        check_minutes(Clock(least + 1, now=lambda: 0.0), 1000.0, 30, sources=24)


@pytest.mark.parametrize("text", ["mix", "pydoc,copying,drills", "pydoc"])
def test_the_fewest_windows_to_repair_on_are_counted_as_they_are_read(text):
    fitting = amounts_for(60.0, Amounts(text=text), rate=500.0, layers=30)
    assert fitting.repair == fitting.calibration_text.of_all(fitting.repair).samples * len(parse_sources(fitting.text))
