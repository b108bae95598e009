"""Progress as rich draws it, and libraries that would draw beside it."""

import io
import re
import sys

import pytest

from shortstack.machine.progress import progress_bar


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
