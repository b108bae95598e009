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
        None, help="Steps to run at once. Default: 1, or the CPUs of the Ray cluster.", minimum=1
    )
    ray: str | None = option(None, help="Run steps on this Ray cluster: an address, auto, or local.")
    artefacts: str | None = option(
        None, help="URL for what steps write, such as s3://bucket/runs, if machines share no folder."
    )
    keep: str = option("best", help="Which weights to keep once nothing needs them.", choices=KEEPS)
    dry_run: bool = option(False, help="Run every check, and list the steps and the disk they need.")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def launcher(self) -> Callable[[], AbstractContextManager[Launch]]:
        """What runs the steps."""
        from shortstack.study import workers

        if self.ray:
            return functools.partial(workers.ray, self.ray, self.workers)
        return functools.partial(workers.local, self.workers or 1)
