"""One tiny model for all tests of healing that only read it."""

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
