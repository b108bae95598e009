"""Errors: as Python, a file, the command line and another process show them."""

import pickle

import pytest

from shortstack import errors
from shortstack.cli.console import fail
from shortstack.errors import PlanError, ShortstackError, is_out_of_memory

LAYERS = PlanError("40 of the model's 30 layers cannot be removed; give 1 to 29", option="drop")
KINDS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ShortstackError)]


def test_error_names_its_option_or_a_place():
    assert str(LAYERS) == f"drop: {LAYERS.message}"
    assert (str(LAYERS.about("layers")), LAYERS.about("").option) == (f"layers: {LAYERS.message}", "")
    assert str(LAYERS.at("my.yaml, line 7")) == f"my.yaml, line 7: drop: {LAYERS.message}"
    assert all(isinstance(each, PlanError) for each in (LAYERS.about("layers"), LAYERS.at("a")))


def test_command_line_spells_the_option(capsys):
    fail(LAYERS.about("held_out"))
    assert capsys.readouterr().err == f"Error: --held-out: {LAYERS.message}\n"
    fail(LAYERS.at("my.yaml, line 7"))
    assert capsys.readouterr().err == f"Error: my.yaml, line 7: drop: {LAYERS.message}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_error_of_another_process_arrives_whole(kind):
    error = kind("a", option="d")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert (type(again), str(again), again.option, again.exit_code) == (kind, "d: a", "d", error.exit_code)


def test_out_of_memory_is_known_by_its_words():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("a bug"))
