"""Where the cache is: as the environment says, or where the system keeps caches."""

import json
import os
import time
from pathlib import Path

import pytest

from command import ended, invoke
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


OLD, NEWER, TODAY = (f"{digit * 64}.states" for digit in "abc")
HALF, MODEL = f"{'d' * 64}.states.partial-12", "e" * 64


@pytest.fixture
def filled(system, monkeypatch):
    """Three files of 100 bytes, the oldest first, a half-written one, and a folder."""
    monkeypatch.setenv("SHORTSTACK_CACHE", str(system / "mine"))
    days = {OLD: 5, NEWER: 4, TODAY: 0.5, HALF: 3}
    for name, age in days.items():
        path = cache.cache_directory("activations") / name
        path.write_bytes(bytes(100))
        os.utime(path, (0, time.time() - age * 86400))
    (cache.cache_directory("gguf", MODEL) / "model.safetensors").write_bytes(bytes(50))
    os.utime(cache.cache_directory("gguf", MODEL), (0, time.time() - 6 * 86400))
    (system / "mine" / "notes.txt").write_text("not ours")
    return system / "mine"


@pytest.mark.parametrize(
    ("limit", "gone"),
    [
        (10**6, [HALF]),
        (460, [MODEL, HALF]),
        (400, [MODEL, OLD, HALF]),
        (1, [MODEL, OLD, NEWER, HALF]),
    ],
)
def test_what_was_not_used_for_longest_goes_where_the_limit_is_reached(limit, gone, filled, monkeypatch):
    monkeypatch.setattr(cache, "cache_limit", lambda: limit)
    assert [entry.path.name for entry in cache.make_room(50)] == gone
    left = {path.name for path in filled.glob("*/*")}
    assert left == {OLD, NEWER, TODAY, HALF, MODEL} - set(gone)


def test_what_no_key_names_is_somebody_elses(filled, monkeypatch):
    """The cache may be told to lie where a user has models, too."""
    mine = filled / "models" / "llama-3-8b" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    os.utime(mine.parent, (0, 0))
    monkeypatch.setattr(cache, "cache_limit", lambda: 1)
    cache.make_room(10**9)
    invoke("cache", "--clear")
    assert mine.read_bytes() == b"mine"


def test_what_is_half_removed_has_lost_its_name(filled, monkeypatch):
    monkeypatch.setattr(cache, "cache_limit", lambda: 1)
    monkeypatch.setattr(cache, "remove", lambda _path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.make_room(10**9)
    assert [path.name.partition(".")[0] for path in (filled / "gguf").iterdir()] == [MODEL]
    assert not (filled / "gguf" / MODEL).exists()


def test_what_could_not_be_removed_is_said(filled, monkeypatch):
    monkeypatch.setattr(cache, "remove", lambda _path: None)  # as of a folder that may be renamed, but not emptied
    told = ended("cache", "--clear")
    assert told.exit_code == 2
    assert "expected entries to remove" in " ".join(told.stderr.split())


def test_what_is_used_goes_last(filled, monkeypatch):
    monkeypatch.setattr(cache, "cache_limit", lambda: 300)
    cache.mark_used(filled / "activations" / OLD)
    assert OLD not in [entry.path.name for entry in cache.make_room(0)]
    os.utime(filled / "activations" / OLD, (0, 0))  # by a clock that was put back, or after days of one run
    assert OLD not in [entry.path.name for entry in cache.make_room(10**9)], "this process may read it again"


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
