"""The options of a study's run; naming them imports nothing heavy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shortstack.machine.options import check_options, option

if TYPE_CHECKING:
    from shortstack.study.workers import Launch

KEEPS = ("best", "all", "none")


@dataclass(frozen=True)
class RunOptions:
    """Where the steps of a study run, and what stays of them."""

    workers: int | None = option(
        None, help="Steps at once. Default: 1, or as many as a Ray cluster has CPUs.", minimum=1
    )
    ray: str | None = option(None, help="Run steps on this Ray cluster: an address, auto, or local.")
    artefacts: str | None = option(
        None, help="URL for what steps write, such as s3://bucket/runs, where machines share no folder."
    )
    keep: str = option("best", help="Weights that stay when nothing needs them any more.", choices=KEEPS)
    dry_run: bool = option(False, help="Make every check, and say which steps there are and the disk for them.")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def launcher(self) -> Callable[[], AbstractContextManager[Launch]]:
        """What runs the steps."""
        from shortstack.study import workers

        if self.ray:
            return functools.partial(workers.ray, self.ray, self.workers)
        return functools.partial(workers.local, self.workers or 1)
