"""One tiny model for all tests of healing that only read it, and signals as a terminal sends them."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shortstack.checkpoint import Checkpoint
from zoo import speaking


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers, an untied head, and a tokenizer."""
    return speaking(tmp_path_factory.mktemp("healing") / "source")


@pytest.fixture
def source(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests were started in the background, which ignores it."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)
