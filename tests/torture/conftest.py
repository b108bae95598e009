"""The process that runs verbs, once for all of these tests; and what was counted, said at the end of a long run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("said")) as one:
        yield one


@pytest.fixture
def counted(record_property: Callable[[str, Any], None]) -> Callable[[str], None]:
    """Keeps what a test has counted, in words, for the end."""
    return lambda words: record_property("counted", words)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if "TORTURE_POINTS" not in os.environ:
        return
    terminalreporter.section("counted")
    reports = [each for outcome in ("passed", "failed") for each in terminalreporter.stats.get(outcome, ())]
    for report in sorted(reports, key=lambda report: report.nodeid):
        for name, words in report.user_properties:
            if name == "counted":
                terminalreporter.line(words)
