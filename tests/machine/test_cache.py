"""Where the cache is: as the environment says, or where the system keeps caches."""

import json
import os
import time
from pathlib import Path

import pytest

from command import invoke
from shortstack.errors import InputError
from shortstack.machine import cache


@pytest.fixture(autouse=True)
def system(monkeypatch, tmp_path) -> Path:
    """A home, and where the system keeps caches: elsewhere, as on macOS."""
    for name in ("SHORTSTACK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(cache, "user_cache_path", lambda name, **_: tmp_path / "Library" / "Caches" / name)
    return tmp_path


def test_a_cache_is_where_the_system_keeps_them_or_the_environment_says(system, monkeypatch):
    assert cache.cache_directory("answers") == system / "Library" / "Caches" / "shortstack" / "answers"
    monkeypatch.setenv("SHORTSTACK_CACHE", str(system / "named"))
    assert cache.cache_directory("gguf") == system / "named" / "gguf"


@pytest.fixture
def filled(system, monkeypatch):
    """Three files of 100 bytes, the oldest first, a half-written one, and a folder."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(system / "mine"))
    days = {"old.states": 5, "newer.states": 4, "today.states": 0.5, "x.states.partial-12": 3}
    for name, age in days.items():
        path = cache.cache_directory("activations") / name
        path.write_bytes(bytes(100))
        os.utime(path, (0, time.time() - age * 86400))
    (cache.cache_directory("gguf", "model") / "model.safetensors").write_bytes(bytes(50))
    os.utime(cache.cache_directory("gguf", "model"), (0, time.time() - 6 * 86400))
    (system / "mine" / "notes.txt").write_text("not ours")
    return system / "mine"


@pytest.mark.parametrize(
    ("limit", "gone"),
    [
        (10**6, ["x.states.partial-12"]),
        (460, ["model", "x.states.partial-12"]),
        (400, ["model", "old.states", "x.states.partial-12"]),
        (1, ["model", "old.states", "newer.states", "x.states.partial-12"]),
    ],
)
def test_what_was_not_used_for_longest_goes_where_the_limit_is_reached(limit, gone, filled, monkeypatch):
    monkeypatch.setattr(cache, "cache_limit", lambda: limit)
    assert [entry.path.name for entry in cache.make_room(50)] == gone
    left = {path.name for path in filled.glob("*/*")}
    assert left == {"old.states", "newer.states", "today.states", "x.states.partial-12", "model"} - set(gone)


def test_what_is_used_goes_last(filled, monkeypatch):
    monkeypatch.setattr(cache, "cache_limit", lambda: 300)
    cache.mark_used(filled / "activations" / "old.states")
    assert "old.states" not in [entry.path.name for entry in cache.make_room(0)]
    os.utime(filled / "activations" / "old.states", (0, 0))  # by a clock that was put back, or after days of one run
    assert "old.states" not in [entry.path.name for entry in cache.make_room(10**9)], "this process may read it again"


def test_the_limit_is_a_size(monkeypatch):
    assert cache.cache_limit() == 50 * 10**9
    monkeypatch.setenv("SHORTSTACK_CACHE_LIMIT", "2GiB")
    assert cache.cache_limit() == 2 << 30
    monkeypatch.setenv("SHORTSTACK_CACHE_LIMIT", "much")
    with pytest.raises(InputError, match="a size like 50GB, found 'much'"):
        cache.cache_limit()


def test_the_verb_shows_and_clears_what_is_ours(filled):
    told = json.loads(invoke("cache", "--json").stdout)
    assert told["directory"] == str(filled)
    assert sorted((entry["kind"], entry["bytes"]) for entry in told["entries"]) == [
        *[("activations", 100)] * 4,
        ("gguf", 50),
    ]
    shown = invoke("cache", "--clear").stdout
    assert "cleared" in shown
    assert "450 B" in shown
    assert not list(filled.glob("*/*"))
    assert (filled / "notes.txt").read_text() == "not ours"
