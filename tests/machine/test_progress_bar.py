"""Progress as rich draws it, and libraries that would draw beside it."""

import io
import os
import re
import sys
from contextlib import suppress

import pytest
from transformers.utils import logging

from shortstack.machine.progress import hush_transformers, progress_bar, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream):
    return re.sub(r"\x1b\[[\d;?]*\w", "", stream.getvalue())


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_each_stage_has_a_bar_and_a_restarted_one_another(stream, monkeypatch):
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar() as progress:
        for done in (1, 2, 4):
            progress("healing", done, 4, note="[9] tokens/s")
        progress("timing", 1, 1)
        progress("healing", 1, 4)
    last = [line.split() for line in shown(stderr).splitlines() if line.strip()][-3:]
    assert [(words[0], *(word for word in words if "%" in word)) for words in last] == [
        ("healing", "100%"),
        ("timing", "100%"),
        ("healing", "25%"),
    ]
    assert "[9] tokens/s" in shown(stderr)


def test_quiet_and_other_processes_show_nothing(monkeypatch, capsys):
    with progress_bar(quiet=True) as progress:
        progress("healing", 1, 1)
    monkeypatch.setenv("RANK", "1")
    with progress_bar() as progress:
        progress("healing", 1, 1)
    assert not capsys.readouterr().err


def test_transformers_draws_no_bars_where_it_logs_errors_alone():
    before = logging.get_verbosity()
    try:
        logging.enable_progress_bar()
        logging.set_verbosity_info()
        hush_transformers()
        assert logging.is_progress_bar_enabled()
        with progress_bar():
            hush_transformers()
            assert not logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def test_closed_stderr_ends_the_program(monkeypatch):
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        with pytest.raises(BrokenPipeError):
            say("no reader")
        monkeypatch.undo()
        with suppress(OSError):
            gone.close()
