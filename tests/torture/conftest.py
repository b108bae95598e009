"""The process that runs verbs, and what each gives, once for all of these tests; and what was counted, after a long run."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import VERBS, Server, Whole, whole_run


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("said")) as one:
        yield one


@pytest.fixture(scope="session")
def whole_of(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """A verb by its name, run whole."""
    return functools.cache(lambda name: whole_run(server, VERBS[name], tmp_path_factory.mktemp(name)))


@pytest.fixture
def whole(name: str, whole_of: Callable[[str], Whole]) -> Whole:
    return whole_of(name)


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
