"""Where the cache is, and what is removed from it."""

import os
import time
from pathlib import Path

import pytest

from shortstack.machine import cache

OLD, NEWER, TODAY = (f"{digit * 64}.states" for digit in "abc")
HALF, MODEL = f"{'d' * 64}.states.partial-12", "e" * 64


@pytest.fixture(autouse=True)
def system(monkeypatch, tmp_path) -> Path:
    """A system whose caches are in tmp_path."""
    for name in ("SHORTSTACK_CACHE", "SHORTSTACK_CACHE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache, "user_cache_path", lambda name, **_: tmp_path / "caches" / name)
    return tmp_path


@pytest.fixture
def filled(system, monkeypatch):
    """Three files of 100 bytes, the oldest first, a half-written one, a folder, and a user's own files."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(system / "mine"))
    days = {OLD: 5, NEWER: 4, TODAY: 0.5, HALF: 3}
    for name, age in days.items():
        path = cache.cache_directory("activations") / name
        path.write_bytes(bytes(100))
        os.utime(path, (0, time.time() - age * 86400))
    for folder, age in ((cache.cache_directory("gguf", MODEL), 6), (cache.cache_directory("models", "llama"), 9)):
        (folder / "model.safetensors").write_bytes(bytes(50))
        os.utime(folder, (0, time.time() - age * 86400))
    return system / "mine"


def test_cache_is_where_the_system_or_the_environment_has_it(system, monkeypatch):
    assert cache.cache_directory("answers") == system / "caches" / "shortstack" / "answers"
    monkeypatch.setenv("SHORTSTACK_CACHE", str(system / "named"))
    assert cache.cache_directory("gguf") == system / "named" / "gguf"


@pytest.mark.parametrize(
    ("limit", "gone"),
    [
        ("1MB", {HALF}),
        ("460B", {MODEL, HALF}),
        ("400B", {MODEL, OLD, HALF}),
        ("1B", {MODEL, OLD, NEWER, HALF}),
    ],
)
def test_least_recently_used_entries_go_at_the_limit(limit, gone, filled, monkeypatch):
    monkeypatch.setenv("SHORTSTACK_CACHE_LIMIT", limit)
    cache.make_room(50)
    assert {path.name for path in filled.glob("*/*")} == {OLD, NEWER, TODAY, HALF, MODEL, "llama"} - gone


def test_entry_that_this_process_uses_stays(filled, monkeypatch):
    monkeypatch.setenv("SHORTSTACK_CACHE_LIMIT", "300B")
    cache.mark_used(filled / "activations" / OLD)
    os.utime(filled / "activations" / OLD, (0, 0))  # by a clock that was put back, or after days of one run
    cache.make_room(10**9)
    assert (filled / "activations" / OLD).exists()
