"""The hub is tried once; if it is unreachable, libraries use local copies and do not retry."""

import logging
import socket

import datasets
import huggingface_hub.constants as constants
import pytest
from huggingface_hub import get_session

from shortstack.data.sources import hub_records
from shortstack.errors import DataError
from shortstack.machine.hub import hub_or_copies


@pytest.fixture
def online(monkeypatch):
    """As without HF_HUB_OFFLINE, which tests set; and the hub is a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


def offline() -> tuple[bool, bool]:
    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


@pytest.mark.usefixtures("online")
def test_unreachable_hub_makes_libraries_offline():
    with hub_or_copies() as reachable:
        assert (reachable, offline()) == (False, (True, True))
    assert offline() == (False, False)


def test_reachable_hub_changes_nothing(monkeypatch, request):
    asked = []
    monkeypatch.setattr(get_session(), "head", lambda url, **_: asked.append(url))
    with hub_or_copies() as reachable:
        assert (reachable, offline(), asked) == (False, (True, True), [])
    request.getfixturevalue("online")
    with hub_or_copies() as reachable:
        assert (reachable, offline(), asked) == (True, (False, False), [constants.ENDPOINT])


@pytest.mark.usefixtures("online")
def test_unreachable_data_set_is_one_message(caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError):
        next(hub_records("org/name", 0))
    assert "Retry" not in caplog.text
