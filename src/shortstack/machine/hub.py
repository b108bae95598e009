"""The hub, which may be out of reach: asked once, and not by every library again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 10  # to wait for any answer


@contextmanager
def hub_or_copies() -> Iterator[bool]:
    """Whether the hub can be reached; where it cannot, libraries take only what this machine has while this lasts.

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
    """Whether the hub says anything."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HfHubHTTPError

    # of the client library below huggingface_hub, which is httpx in some of its releases and httpx2 in others
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except transport:
        return False
    return True
