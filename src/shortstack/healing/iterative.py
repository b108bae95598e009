"""Prune and heal in turns, the iterative schedules of the paper (Lu et al., 4.3)."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, Model
from shortstack.data import Rows, Tokens
from shortstack.decoder import read_tokens
from shortstack.errors import InputError
from shortstack.healing.healer import Healing, HealingRun, heal
from shortstack.healing.schedule import IterativeSchedule
from shortstack.healing.task import HealingTask
from shortstack.healing.unfinished import Unfinished
from shortstack.machine.device import Compute
from shortstack.machine.files import rename_new
from shortstack.machine.progress import Progress, in_notebooks, under
from shortstack.machine.typed import typed
from shortstack.planning import Selection, select
from shortstack.pruning import prune
from shortstack.scoring import METRICS


@typed
def heal_in_turns(
    checkpoint: Model,
    out: str | Path,
    turns: IterativeSchedule,
    task: HealingTask | Rows,
    *,
    resume: bool | None = None,
    progress: Progress = in_notebooks,
) -> Healing:
    """Cut and heal() in turns; what is between lies in `<out>.turns` until the end.

    A turn that is finished is not repeated, and with resume one that was killed goes on where it was. Of several processes
    the first chooses and cuts, and all heal.

    Raises:
        PlanError, ArchitectureError: no layer is to go, or no cut of so many is exact.
        OutputError, InputError: as heal().
    """
    checkpoint = Checkpoint.of(checkpoint)
    task = HealingTask.of(task)
    sizes = turn_sizes(checkpoint, turns, task)
    run = HealingRun(checkpoint, task, progress)
    run.check()
    writer = run.writer(out)
    unfinished = Unfinished(writer.out, "turns")
    first = run.processes.is_main_process
    if first:
        unfinished.check_ours()
    compute = replace(task.compute, seed=task.schedule.seed if turns.seed is None else turns.seed)
    with writer.held() if first else nullcontext():
        tokens = _calibrating(checkpoint, turns, compute, progress) if first else None
        record = _record(run, turns, tokens, compute)  # by all: processes wait for each other where they read data
        if first:
            unfinished.open(record, resume=resume)
        for number, count in enumerate(sizes, start=1):
            pruned, healed = (unfinished.folder / f"{number}-{kind}" for kind in ("pruned", "healed"))
            turn = under(progress, f"turn {number} of {len(sizes)}: ")
            if first and number == len(sizes):
                shutil.rmtree(healed, ignore_errors=True)  # killed after its end; only its result is missing
            if first and not healed.exists() and not pruned.exists():
                plan = select(
                    checkpoint, Selection(metric=turns.metric, drop=count), tokens, compute=compute, progress=turn
                )
                prune(checkpoint, plan, pruned, progress=turn)
            run.processes.wait_for_everyone()
            if not healed.exists():
                result = heal(checkpoint.derived(pruned), healed, task, resume=resume, progress=turn)
            checkpoint = checkpoint.derived(healed)
        run.processes.wait_for_everyone()  # all have opened what is renamed now
        if first:
            rename_new(healed, writer.out)
            for logs in unfinished.folder.glob("*.logs"):
                shutil.move(logs, writer.out.with_name(f"{writer.out.name}.logs") / logs.stem)
            unfinished.remove()
    run.processes.wait_for_everyone()
    return replace(result, output=writer.out)


def turn_sizes(checkpoint: Checkpoint, turns: IterativeSchedule, task: HealingTask) -> list[int]:
    """Return how many layers go in each turn; refuse turns by the clock, and more layers to train than the last one has."""
    if task.schedule.minutes is not None:
        raise InputError(
            "healing in turns",
            expected="a single healing, which has all of the time",
            fix="give max_steps, which counts for each turn",
            option="minutes",
        )
    layers = checkpoint.anatomy.layers
    sizes = turns.sizes(layers)
    task.method.check_fits(layers - sum(sizes))
    return sizes


def _calibrating(
    checkpoint: Checkpoint, turns: IterativeSchedule, compute: Compute, progress: Progress
) -> Tokens | None:
    """Read the windows of all turns, if the metric looks at any: what a model writes itself is the unpruned one's."""
    if not METRICS[turns.metric].needs_text:
        return None
    return read_tokens(checkpoint, turns.calibration, compute=compute, progress=progress)


def _record(run: HealingRun, turns: IterativeSchedule, tokens: Tokens | None, compute: Compute) -> dict[str, Any]:
    choosing = {"seed": compute.seed, "dtype": compute.dtype}
    text = tokens.record() if tokens else None
    return {**run.record(run.examples()), "turns": asdict(turns), "text": text, "choosing": choosing}
