"""The Hugging Face hub, which may be unreachable: tried once here, and not by every library again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 10  # to wait for any answer


@contextmanager
def hub_or_copies() -> Iterator[bool]:
    """Try the hub, and yield whether it answers; if not, libraries use only copies on this machine until this ends.

    By themselves they try each file again for over a minute, with a line on stderr for each time.
    """
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    reachable = not any(before) and _answers()
    try:
        if not reachable:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _answers() -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except connection_error():
        return False
    return True


def connection_error() -> type[Exception]:
    """Return the error of a failed connection to the hub: some releases of huggingface_hub use httpx, others httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]
