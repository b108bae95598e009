"""Where the cache is: as the environment says, where an earlier release had it, or where the system keeps caches."""

from pathlib import Path

import pytest

from shortstack.machine import cache


@pytest.fixture(autouse=True)
def system(monkeypatch, tmp_path) -> Path:
    """A home, and where the system keeps caches: elsewhere, as on macOS."""
    for name in ("SHORTSTACK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(cache, "user_cache_path", lambda name, **_: tmp_path / "Library" / "Caches" / name)
    return tmp_path


def test_a_new_cache_is_where_the_system_keeps_them(system):
    assert cache.cache_directory("walks") == system / "Library" / "Caches" / "shortstack" / "walks"
    assert (system / "Library" / "Caches" / "shortstack" / "walks").is_dir()


@pytest.mark.parametrize("xdg", [False, True])
def test_one_of_an_earlier_release_goes_on_being_used(xdg, system, monkeypatch):
    if xdg:
        monkeypatch.setenv("XDG_CACHE_HOME", str(system / "mine"))
    earlier = system / ("mine" if xdg else ".cache") / "shortstack"
    earlier.mkdir(parents=True)
    assert cache.cache_directory() == earlier


def test_the_environment_comes_first(system, monkeypatch):
    (system / ".cache" / "shortstack").mkdir(parents=True)
    monkeypatch.setenv("SHORTSTACK_CACHE", str(system / "named"))
    assert cache.cache_directory("gguf") == system / "named" / "gguf"
