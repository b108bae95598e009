"""Prune and heal in turns, the iterative schedules of the paper (Lu et al., 4.3)."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.data import Tokens
from shortstack.decoder import calibration_tokens
from shortstack.errors import ArchitectureError, PlanError, parameter
from shortstack.healing.healer import Healing, heal
from shortstack.healing.task import HealingTask
from shortstack.healing.turns import Turns
from shortstack.healing.unfinished import Unfinished
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress, silent, under
from shortstack.planning import Choice, Plan, choose
from shortstack.pruning import prune


def heal_in_turns(
    checkpoint: Checkpoint,
    out: str | Path,
    turns: Turns,
    task: HealingTask | str,
    *,
    cache: bool = True,
    resume: bool | None = None,
    progress: Progress = silent,
) -> Healing:
    """heal() after each cut; what is between lies in `<out>.turns` until the end.

    A turn that is finished is not repeated, and with resume one that was killed goes on where it was.

    Raises:
        PlanError: no layer is to go, or no cut of so many is exact.
        OutputError, InputError: as heal().
    """
    task = HealingTask(task) if isinstance(task, str) else task
    sizes = turns.sizes(checkpoint.anatomy.layers)
    seed = task.schedule.seed if turns.seed is None else turns.seed
    compute = replace(task.compute, seed=seed)
    writer = CheckpointWriter(out, source=checkpoint.directory, nbytes=checkpoint.weight_bytes)
    unfinished = Unfinished(writer.out, "turns")
    folder = unfinished.open(_record(checkpoint, turns, task), resume=resume)
    tokens = _calibrating(checkpoint, turns, compute, progress)
    for number, count in enumerate(sizes, start=1):
        pruned, healed = (folder / f"{number}-{kind}" for kind in ("pruned", "healed"))
        turn = under(progress, f"turn {number} of {len(sizes)}: ")
        if number == len(sizes):
            shutil.rmtree(healed, ignore_errors=True)  # killed after its end; only its result is missing
        if not healed.exists():
            if not pruned.exists():
                prune(checkpoint, _chosen(checkpoint, count, turns, tokens, compute, turn), pruned, progress=turn)
            result = heal(Checkpoint.open(str(pruned)), healed, task, cache=cache, resume=resume, progress=turn)
        checkpoint = Checkpoint.open(str(healed))
    os.rename(healed, writer.out)
    for logs in folder.glob("*.logs"):
        shutil.move(logs, writer.out.with_name(f"{writer.out.name}.logs") / logs.stem)
    unfinished.remove()
    return replace(result, output=writer.out)


def _calibrating(checkpoint: Checkpoint, turns: Turns, compute: Compute, progress: Progress) -> Tokens | None:
    """The windows of all turns, if the metric looks at any: what a model writes itself is the unpruned one's."""
    if not Choice(turns.metric, 1).needs_text:
        return None
    return calibration_tokens(checkpoint, turns.calibration, compute=compute, progress=progress)


def _chosen(
    checkpoint: Checkpoint, count: int, turns: Turns, tokens: Tokens | None, compute: Compute, progress: Progress
) -> Plan:
    """The layers that go next: the lowest by the metric, or the nearest cut that is exact."""
    choice = Choice(turns.metric, count)
    try:
        return choose(checkpoint, choice, tokens, compute=compute, progress=progress).plan
    except ArchitectureError as error:
        raise PlanError(
            parameter("step"),
            expected=f"a cut of {count} layers that {checkpoint.anatomy.architecture} can express",
            found="none",
            fix=f"take another {parameter('step')}",
        ) from error


def _record(checkpoint: Checkpoint, turns: Turns, task: HealingTask) -> dict[str, Any]:
    """The settings that a run must have to go on from here; those of a turn are kept with that turn."""
    return {
        "weights": checkpoint.weights_sha256,
        "turns": asdict(turns),
        "data": task.training_data.data,
        "schedule": task.schedule.to_dict(),
        "method": task.method.to_dict(),
    }
