"""How long work reports itself: a callable that is told what is being done, how much is done, and of how much."""

from typing import Protocol


class Progress(Protocol):
    """`progress("scoring", 12, 465)`; called with done == total when a stage ends. The command line draws a bar.

    note: what else there is to say, such as a speed.
    """

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None: ...


def silent(_stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
    """The default: report nothing."""
