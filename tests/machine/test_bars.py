"""Progress in logs and notebooks: how often something is said, and what."""

import inspect
import io
import os
import re
import sys
import types
from contextlib import suppress
from pathlib import Path

import pytest
from transformers.utils import logging

import shortstack as ss
from shortstack.machine import progress as module
from shortstack.machine.progress import bars, hush_transformers, say


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_at_the_beginning_each_half_minute_and_at_the_end(clock, capsys):
    with bars() as told:
        for second in range(0, 101, 5):
            clock[0] = float(second)
            told("healing", second, 100, note="9 tokens/s")
    assert capsys.readouterr().err.splitlines() == [
        "healing: 0%, 9 tokens/s",
        "healing: 30%, 70 s left, 9 tokens/s",
        "healing: 60%, 40 s left, 9 tokens/s",
        "healing: 90%, 10 s left, 9 tokens/s",
        "healing: 100%, 9 tokens/s",
    ]


def test_the_time_left_of_work_that_goes_on_is_by_its_pace_from_there(clock, capsys):
    with bars() as told:
        for second in range(0, 61, 30):
            clock[0] = float(second)
            told("shrink", 500 + second, 900)
    assert capsys.readouterr().err.splitlines() == ["shrink: 56%", "shrink: 59%, 370 s left", "shrink: 62%, 340 s left"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_time_left_though_the_total_changes(clock, monkeypatch):
    """As that of a whole shrink may each time it is told."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "120")
    with bars() as told:
        for second in (1, 2, 40, 41):
            clock[0] = float(second)
            told("shrink", second, 99 + second % 3, note="step 1 of 9")
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", shown.getvalue())
    assert re.findall(r"ETA (\S+)", plain)[-1] == "0:01:00"


@pytest.fixture
def cells(monkeypatch):
    """Return what is drawn in a notebook, as text: a list for each cell."""
    shown = []

    def text(live):
        return live._repr_mimebundle_((), ())["text/plain"]

    def display(live, *, display_id):
        assert display_id
        shown.append([text(live)])
        return types.SimpleNamespace(update=lambda again: shown[-1].append(text(again)))

    kernel = types.SimpleNamespace(kernel=1)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    return shown


def test_a_notebook_has_a_bar_for_each_stage_that_changes_in_its_place(clock, cells, capsys):
    with bars() as told:
        for second in range(5):
            clock[0] = second / 4
            told("healing", second, 4, note="[9] tokens/s")
        told("timing", 1, 1)
    ((first, *_, last),) = cells
    assert [line.split()[0] for line in first.splitlines()] == ["healing"]
    assert [(line.split()[0], "100%" in line) for line in last.splitlines()] == [("healing", True), ("timing", True)]
    assert "[9] tokens/s" in last
    assert [re.findall(r"(\d+)%", each)[0] for each in cells[0]] == ["0", "50", "100", "100"]
    assert not capsys.readouterr().err


def test_what_a_user_calls_shows_itself_in_a_notebook_and_nowhere_else(monkeypatch, request):
    module.in_notebooks("scoring", 1, 1)
    cells = request.getfixturevalue("cells")
    for cell in range(2):
        kernel = types.SimpleNamespace(kernel=1, execution_count=cell)
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda kernel=kernel: kernel)
        module.in_notebooks("scoring", 0, 2)
        module.in_notebooks("scoring", 2, 2)
    assert [[each.split()[0] for each in cell] for cell in cells] == [["scoring"] * 2] * 2
    every = [getattr(ss, name) for name in dir(ss) if not name.startswith("_")]
    defaults = [
        parameter.default
        for function in every
        if inspect.isfunction(function)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name == "progress"
    ]
    assert len(defaults) > 15
    assert set(defaults) == {module.in_notebooks}


def test_bars_of_transformers_go_where_it_is_asked_for_errors_alone():
    before = logging.get_verbosity()
    try:
        logging.enable_progress_bar()
        logging.set_verbosity_info()
        hush_transformers()
        assert logging.is_progress_bar_enabled()
        with bars():
            hush_transformers()
            assert not logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_work_goes_on_where_what_is_said_has_no_room(monkeypatch):
    with suppress(OSError), Path("/dev/full").open("w", buffering=1) as full:  # it cannot be closed without an error
        monkeypatch.setattr(sys, "stderr", full)
        with bars() as progress:
            progress("copying", 1, 2)
            progress("copying", 2, 2)
            progress("checking", 1, 1)
            seen = True
        monkeypatch.undo()
    assert seen


def test_a_reader_that_has_gone_ends_the_program(monkeypatch):
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        with pytest.raises(BrokenPipeError):
            say("who reads this?")
        monkeypatch.undo()
        with suppress(OSError):
            gone.close()
