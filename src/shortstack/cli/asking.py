"""What a model is asked, as options: tasks, and text that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortstack.cli.options import TaskNames, check_unused
from shortstack.errors import InputError

if TYPE_CHECKING:
    from shortstack.evaluation import Tasks


class Backend(StrEnum):
    shortstack = "shortstack"
    vllm = "vllm"


@dataclass(frozen=True)
class Writing:
    """What is looked at of the text that a model writes."""

    probes: Annotated[
        bool, typer.Option("--probes", help="Small generation tasks: copying, counting, brackets, sums, JSON.")
    ] = False
    probe_items: Annotated[int, typer.Option(min=2, max=100, help="Items of each probe, drawn by seed.")] = 50
    collapse_check: Annotated[
        bool | None,
        typer.Option(
            "--collapse-check/--no-collapse-check",
            help="Look for loops and silence in what it writes. Default: where shortstack cut or healed it.",
            show_default=False,
        ),
    ] = None

    def asked(self) -> dict[str, Any]:
        """The arguments of evaluate()."""
        if not self.probes and self.probe_items != Writing.probe_items:
            raise InputError("--probe-items", expected="--probes", found="no --probes", fix="add --probes")
        return {"probe_items": self.probe_items if self.probes else 0, "collapse": self.collapse_check}


@dataclass(frozen=True)
class Asking:
    """Which tasks are asked, and how."""

    tasks: TaskNames = None
    limit: Annotated[int | None, typer.Option(help="Only the first n documents of each task.", show_default=False)] = (
        None
    )
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder of .jsonl or .parquet files for standard tasks.", show_default=False)
    ] = None
    include: Annotated[
        Path | None, typer.Option(help="A folder of your own lm-eval task files.", show_default=False)
    ] = None
    batch_size: Annotated[str, typer.Option(help="Sequences in a forward: a number, or auto, by their tokens.")] = (
        "auto"
    )
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a prompt with its answer. Default: the model's positions.", show_default=False),
    ] = None
    backend: Annotated[Backend, typer.Option(help="Who answers the tasks: shortstack itself, or vLLM.")] = (
        Backend.shortstack
    )

    def asked(self, seed: int) -> Tasks | None:
        """The tasks of evaluate(); None where none are named."""
        if self.tasks is None:
            check_unused("evaluate without --tasks", self)
            return None
        from shortstack.evaluation import Tasks

        if self.batch_size != "auto" and not self.batch_size.isdecimal():
            raise InputError(
                "--batch-size", expected="a number or auto", found=repr(self.batch_size), fix="write --batch-size 16"
            )
        return Tasks(
            self.tasks,
            limit=self.limit,
            data=self.data_dir,
            include=self.include,
            batch=None if self.batch_size == "auto" else int(self.batch_size),
            max_length=self.max_length,
            seed=seed,
            backend=self.backend.value,
        )
