"""An error as it is said to Python, of a file, on the command line, and from another process."""

from __future__ import annotations

import pickle

import pytest

from shortstack import errors
from shortstack.cli.console import fail
from shortstack.errors import DataError, PlanError, ShortstackError

HELD_OUT = PlanError("9", expected="fewer than 8", fix="hold out 2", option="held_out")
KINDS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ShortstackError)]


def test_python_reads_one_sentence_that_ends_once():
    assert str(HELD_OUT) == "held_out: expected fewer than 8, found 9. To fix it: hold out 2."
    assert str(HELD_OUT.but(fix="did you mean 2?")).endswith("To fix it: did you mean 2?")


def test_a_file_is_named_with_its_key_and_an_option_with_the_line_of_its_text():
    told = HELD_OUT.in_file("my.yaml, line 7")
    assert (told.option, told.where) == ("", "my.yaml, line 7: held_out")
    line = DataError("a list", expected="an object", fix="correct it", option="data", where="a.jsonl, line 2")
    assert str(line).startswith("data: a.jsonl, line 2: expected an object")


def test_the_command_line_spells_the_option_alone(capsys):
    fail(HELD_OUT.but(fix="raise max_samples"))
    said = "Error: --held-out\n  expected  fewer than 8\n  found     9\n  to fix it raise max_samples\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_another_process_arrive_whole(kind):
    error = kind("a", expected="b", fix="c", option="d", where="e")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
