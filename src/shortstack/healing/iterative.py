"""Prune and heal in turns, the iterative schedules of the paper (Lu et al., 4.3)."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, Model
from shortstack.data import Rows, Tokens
from shortstack.decoder import calibration_tokens
from shortstack.errors import ArchitectureError, InputError, PlanError
from shortstack.healing.healer import Healing, HealingRun, heal
from shortstack.healing.task import HealingTask
from shortstack.healing.turns import Turns
from shortstack.healing.unfinished import Unfinished
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute
from shortstack.machine.files import rename_new
from shortstack.machine.progress import Progress, in_notebooks, under
from shortstack.machine.typed import typed
from shortstack.planning import Choice, Plan, choose
from shortstack.pruning import prune


@typed
def heal_in_turns(
    checkpoint: Model,
    out: str | Path,
    turns: Turns,
    task: HealingTask | Rows,
    *,
    cache: bool = True,
    resume: bool | None = None,
    progress: Progress = in_notebooks,
    clock: Clock | None = None,
) -> Healing:
    """heal() after each cut; what is between lies in `<out>.turns` until the end.

    A turn that is finished is not repeated, and with resume one that was killed goes on where it was. Of several processes
    the first chooses and cuts, and all heal. clock: all of it ends with this one, in whose time the turns have equal parts.

    Raises:
        PlanError: no layer is to go, or no cut of so many is exact.
        OutputError, InputError: as heal().
    """
    checkpoint = Checkpoint.of(checkpoint)
    task = HealingTask.of(task)
    if task.schedule.minutes is not None:
        raise InputError(
            "several in turns",
            expected="one healing, whose time it is",
            fix="give max_steps, which counts for each turn",
            option="minutes",
        )
    sizes = turns.sizes(checkpoint.anatomy.layers)
    run = HealingRun(checkpoint, task, progress)
    writer = run.writer(out)
    unfinished = Unfinished(writer.out, "turns")
    first = run.processes.is_main_process
    with writer.held() if first else nullcontext():
        chooser = _Chooser(
            turns, _calibrating(checkpoint, turns, task, progress) if first else None, _compute(turns, task)
        )
        record = _record(run, chooser)  # by all: processes wait for each other where they read data
        if first:
            unfinished.open(record, resume=resume)
        for number, count in enumerate(sizes, start=1):
            pruned, healed = (unfinished.folder / f"{number}-{kind}" for kind in ("pruned", "healed"))
            turn = under(progress, f"turn {number} of {len(sizes)}: ")
            if first:
                if number == len(sizes):
                    shutil.rmtree(healed, ignore_errors=True)  # killed after its end; only its result is missing
                if not healed.exists() and not pruned.exists():
                    prune(checkpoint, chooser.chosen(checkpoint, count, turn), pruned, progress=turn)
            run.processes.wait_for_everyone()
            if not healed.exists():
                turn_clock = clock.next(1 / (len(sizes) - number + 1)) if clock else None
                how: dict[str, Any] = {"cache": cache, "resume": resume, "progress": turn, "clock": turn_clock}
                result = heal(_opened(pruned, checkpoint), healed, task, **how)
            checkpoint = _opened(healed, checkpoint)
        run.processes.wait_for_everyone()  # all have opened what is renamed now
        if first:
            rename_new(healed, writer.out)
            _keep_logs(unfinished.folder, writer.out)
            unfinished.remove()
    run.processes.wait_for_everyone()
    return replace(result, output=writer.out)


def _opened(folder: Path, source: Checkpoint) -> Checkpoint:
    """Open a checkpoint that was made from another, trusting remote code if the source is trusted."""
    return Checkpoint.open(folder, trust_remote_code=source.trust_remote_code)


def _keep_logs(folder: Path, out: Path) -> None:
    """Put what loggers wrote in each turn beside the output."""
    for logs in folder.glob("*.logs"):
        shutil.move(logs, out.with_name(f"{out.name}.logs") / logs.stem)


def _compute(turns: Turns, task: HealingTask) -> Compute:
    return replace(task.compute, seed=task.schedule.seed if turns.seed is None else turns.seed)


def _calibrating(checkpoint: Checkpoint, turns: Turns, task: HealingTask, progress: Progress) -> Tokens | None:
    """The windows of all turns, if the metric looks at any: what a model writes itself is the unpruned one's."""
    if not Choice(turns.metric, 1).needs_text:
        return None
    return calibration_tokens(checkpoint, turns.calibration, compute=_compute(turns, task), progress=progress)


@dataclass(frozen=True)
class _Chooser:
    """How the layers of each turn are chosen."""

    turns: Turns
    tokens: Tokens | None
    compute: Compute

    def chosen(self, checkpoint: Checkpoint, count: int, progress: Progress) -> Plan:
        """The layers that go next: the lowest by the metric, or the nearest cut that is exact."""
        choice = Choice(self.turns.metric, count)
        try:
            return choose(checkpoint, choice, self.tokens, compute=self.compute, progress=progress).plan
        except ArchitectureError as error:
            raise PlanError(
                "none",
                expected=f"a cut of {count} layers that {checkpoint.anatomy.architecture} can express",
                fix="take another",
                option="step",
            ) from error


def _record(run: HealingRun, chooser: _Chooser) -> dict[str, Any]:
    """All that the outcome depends on: what one healing does, and how layers are chosen."""
    text = chooser.tokens.record() if chooser.tokens else None
    compute = {"seed": chooser.compute.seed, "dtype": chooser.compute.dtype}
    return {**run.record(run.examples()), "turns": asdict(chooser.turns), "text": text, "choosing": compute}
