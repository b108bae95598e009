"""Nothing here reaches the network, and every cache is a fresh folder."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers with as many threads as there are cores wait for each other's
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line has it, before torch is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's bootstrap forks, and a child of a process with threads may hang
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")  # where transformers puts a checkpoint's own code
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"])
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "conformance")]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test whose forks train in a process of its own: torch makes no backward pass in a fork of one that made some."""
    if not pyfuncitem.get_closest_marker("forks_that_train") or "FORKS_THAT_TRAIN" in os.environ:
        return None
    environment = {**os.environ, "FORKS_THAT_TRAIN": "1"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    done = subprocess.run(command, env=environment, cwd=pyfuncitem.config.rootpath, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return True


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that no other test has filled."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def short_pydoc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few pages in place of all, where `pydoc` is read again and again: of the whole of it tokens are made each time."""
    rooms, name = ("cli", "healing", "pruning"), request.path.stem
    if name == "test_processes" or (request.path.parent.name not in rooms and name != "test_docs"):
        return
    from pydoc_data import topics

    from shortstack.data.in_context import words

    monkeypatch.setattr(topics, "topics", dict(sorted(topics.topics.items())[:12]))
    for file in ("in_context", "sources"):  # what is kept is of the whole text
        monkeypatch.setattr(f"shortstack.data.{file}.words", words.__wrapped__)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices: more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def study_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tiny study of studies.py reads."""
    from studies import make_data

    return make_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def named_data(study_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny study finds it as $TINY."""
    monkeypatch.setenv("TINY", str(study_data))
