"""The demo on a tiny model in the real one's place: what is left when it does not reach its end."""

from __future__ import annotations

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.errors import OutputError
from shortstack.study.demo import run
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where "demo" names a tiny model."""
    source, opened = speaking(tmp_path / "source"), Checkpoint.open
    monkeypatch.setattr(
        Checkpoint, "open", lambda model, **options: opened(source if model == "demo" else model, **options)
    )
    return tmp_path


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("scoring", KeyboardInterrupt),
        ("writing weights", OSError),
        ("checking digests", KeyboardInterrupt),
        ("walking the frozen layers", SystemExit),
    ],
)
def test_a_demo_that_is_stopped_leaves_nothing(stage, error, folder):
    written = []

    def stop(now: str, _done: int, _total: int, *, note: str = "") -> None:
        if now == stage:
            written.extend(path.name for path in folder.glob("deep/out/*"))
            raise error

    with pytest.raises(error):
        run(folder / "deep" / "out", progress=stop)
    assert ("pruned" in written) == (stage in {"checking digests", "walking the frozen layers"})
    assert not (folder / "deep").exists()


def test_an_output_that_somebody_makes_meanwhile_is_left_to_them(folder, monkeypatch):
    def make_and_pass(*_args, **_options):
        (folder / "out").mkdir()

    monkeypatch.setattr("shortstack.study.demo.check_fits", make_and_pass)
    with pytest.raises(OutputError, match="exists"):
        run(folder / "out")
    assert (folder / "out").is_dir()


def test_an_output_that_is_there_is_left_as_it_was(folder):
    (folder / "out").mkdir()
    (folder / "out" / "mine").touch()
    with pytest.raises(OutputError, match="exists"):
        run(folder / "out")
    assert [path.name for path in (folder / "out").iterdir()] == ["mine"]
