"""What fits into the minutes: never more than its share, never less than the least, and healing has the rest."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shortstack.study.minutes import ENDLESS, LEAST, SHARES, Amounts, Line, fitting, planned_seconds

costs = st.builds(Line, st.floats(0, 5), st.floats(0.001, 2))
NAMES = ("windows", "finalists", "repair", "samples", "judged")
LINES = st.fixed_dictionaries(dict.fromkeys(NAMES, costs))
WANTED = Amounts(16, 5, 256, 5000, 64)


@given(LINES, st.floats(10, 5000))
def test_each_has_as_much_as_its_share_allows(lines, seconds):
    amounts = fitting(WANTED, seconds, lines)
    for name, share in SHARES.items():
        amount, line = getattr(amounts, name), lines[name]
        if name == "windows":
            each = lines["finalists"]
            repairs = amounts.finalists + 1 if amounts.finalists else 0
            line = Line(line.fixed + repairs * each.fixed, line.each + repairs * each.each)
        assert getattr(LEAST, name) <= amount <= getattr(WANTED, name)
        if amount > getattr(LEAST, name):
            assert line.fixed + line.each * amount <= share * seconds + 1e-6
        if amount < getattr(WANTED, name):
            assert line.fixed + line.each * (amount + 1) > share * seconds - 1e-6
    if amounts.samples > LEAST.samples:
        assert planned_seconds(amounts, lines) <= seconds + 1e-6
    if amounts.samples < WANTED.samples:
        assert planned_seconds(replace(amounts, samples=amounts.samples + 1), lines) > seconds - 1e-6


def test_what_nobody_asked_for_is_left_alone_and_what_was_is_said():
    lines = dict.fromkeys(NAMES, Line(0.0, 1.0))
    amounts = fitting(replace(WANTED, all_judged=True, samples=0), 100.0, lines)
    assert amounts == Amounts(10, 1, 16, 0, 64, True)
    assert amounts.left_out(replace(WANTED, all_judged=True, samples=0)) == [
        "windows of each text to choose on: 10 in place of 16",
        "pairs of blocks to repair before one is chosen: 1 in place of 5",
        "windows to repair on: 16 in place of 256",
    ]
    assert not Amounts(16, 5, 256, 50, 64).left_out(Amounts(16, 5, 256, ENDLESS, 64))


def test_finalists_are_as_many_as_leave_half_of_the_windows():
    lines = {**dict.fromkeys(NAMES, Line(0.0, 0.0)), "windows": Line(0.0, 1.0), "finalists": Line(0.0, 1.0)}
    found = {seconds: fitting(WANTED, seconds / 0.3, lines) for seconds in (112, 111, 56, 55, 24, 23, 6)}
    assert {seconds: (each.finalists, each.windows) for seconds, each in found.items()} == {
        112: (5, 16),
        111: (5, 15),
        56: (5, 8),
        55: (4, 9),
        24: (1, 8),
        23: (0, 16),
        6: (0, 6),
    }
    assert fitting(replace(WANTED, finalists=0), 1000.0, lines).finalists == 0, "the recipe has none"


def test_what_costs_nothing_always_fits():
    lines = dict.fromkeys(NAMES, Line(1.0, 0.0))
    assert fitting(WANTED, 60.0, lines) == WANTED
