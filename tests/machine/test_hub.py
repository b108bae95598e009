"""The hub is asked once; out of reach, libraries take what this machine has and do not try again and again."""

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
def test_out_of_reach_libraries_are_offline_while_it_lasts():
    with hub_or_copies() as reachable:
        assert (reachable, offline()) == (False, (True, True))
    assert offline() == (False, False)


def test_within_reach_nothing_changes_and_who_is_offline_is_not_asked(monkeypatch, request):
    asked = []
    monkeypatch.setattr(get_session(), "head", lambda url, **_: asked.append(url))
    with hub_or_copies() as reachable:
        assert (reachable, offline(), asked) == (False, (True, True), [])
    request.getfixturevalue("online")
    with hub_or_copies() as reachable:
        assert (reachable, offline(), asked) == (True, (False, False), [constants.ENDPOINT])


@pytest.mark.usefixtures("online")
def test_a_data_set_that_cannot_be_had_is_one_message(caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as refused:
        next(hub_records("org/name", 0))
    assert "no hub within reach" in str(refused.value)
    assert "Retry" not in caplog.text


@pytest.mark.usefixtures("online")
def test_the_data_of_a_task_that_cannot_be_had_is_one_message(caplog, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from shortstack.evaluation import Tasks

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as refused:
        Tasks("piqa").load()
    assert refused.value.where == "the data of piqa"
    assert refused.value.found.startswith("no hub within reach")
    assert "data_dir" in refused.value.fix
    assert "Retry" not in caplog.text
