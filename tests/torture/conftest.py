"""The process that runs verbs, once for a file of tests."""

from collections.abc import Iterator

import pytest
from faults import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("said")) as one:
        yield one
