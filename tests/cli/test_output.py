"""Warnings, pictures, hints and signals of the command line."""

import os
import signal
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import pytest

from shortstack.cli.console import show_answers
from shortstack.cli.options import resume_hint
from shortstack.errors import ShortstackWarning
from zoo import speaking


def test_own_warning_is_a_line_and_others_stay(command, monkeypatch):
    def listing():
        warnings.warn("the mix is smaller", ShortstackWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return ""

    monkeypatch.setattr("shortstack.cli.app.listing", listing)
    with pytest.warns(UserWarning, match="something else") as others:
        assert command() == (0, "", "Warning: the mix is smaller\n")
    assert len(others) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit(143)])
def test_stopped_run_prints_how_to_continue(stop, capsys):
    with pytest.raises((KeyboardInterrupt, SystemExit)), resume_hint("run the same command again"):
        raise stop
    assert capsys.readouterr().err == "To continue: run the same command again.\n"
    with pytest.raises(ValueError, match="no"), resume_hint("run it again"):
        raise ValueError("no")
    assert not capsys.readouterr().err


STOPPED = """
import signal, sys, time
from shortstack.cli import app
from shortstack.machine.files import atomic_write
from pathlib import Path

def run(words):
    with atomic_write(Path(words[0])) as partial:
        partial.write_text("half")
        print("writing", flush=True)
        time.sleep(60)

app.run = run
signal.signal(signal.SIGINT, signal.default_int_handler)
app.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_ends_the_program_and_leaves_no_half_output(number, tmp_path):
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(getattr(signal, number))
    assert process.wait() == 128 + getattr(signal, number)
    assert os.listdir(tmp_path) == []


def test_generated_text_moves_no_cursor_and_changes_no_colour(capsys):
    show_answers({"prompt": "a\x1b[2Jb", "short": "one\r\x1b[31mtwo\nthree\x07"})
    assert capsys.readouterr().out == "\nPrompt: a[2Jb\nshort:\n  one[31mtwo\n  three\n\n"


def test_verb_writes_a_picture(command, tmp_path):
    speaking(tmp_path / "m")
    assert command("score", "m", "--metric", "reverse", "--plot", "x.svg")[0] == 0
    root = ElementTree.fromstring((tmp_path / "x.svg").read_text())  # noqa: S314  written above
    assert any("Scores" in "".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text"))
