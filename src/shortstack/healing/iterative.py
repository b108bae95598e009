"""Prune and heal in turns, the iterative schedules of the paper (Lu et al., 4.3): 1:1:8 is drop 8, step 1."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.data import CalibrationText
from shortstack.errors import ArchitectureError, PlanError, parameter
from shortstack.healing.healer import Healing, heal
from shortstack.healing.schedule import Schedule
from shortstack.healing.unfinished import Unfinished
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Choice, Plan, choose
from shortstack.planning.layer_sets import check_pace, parse_drop
from shortstack.pruning import prune
from shortstack.scoring.metrics import check_step


@dataclass(frozen=True)
class Turns:
    """How much goes in all (25% or a count), how many layers at a time, and how they are chosen each time.

    seed: of the choice; None: the schedule's.
    """

    drop: str
    step: int
    metric: str = "ppl"
    text: str = "pydoc"
    samples: int | None = 10
    length: int = 128
    seed: int | None = None

    def __post_init__(self) -> None:
        check_step(self.step, self.metric)

    def sizes(self, layers: int) -> list[int]:
        """How many layers go in each turn.

        >>> Turns("8", 3).sizes(32)
        [3, 3, 2]

        Raises:
            PlanError: no such number of layers can go, or so many at a time.
        """
        total = parse_drop(self.drop, layers)
        check_pace(self.step, total)
        return [min(self.step, total - gone) for gone in range(0, total, self.step)]

    def chosen(self, checkpoint: Checkpoint, count: int, *, seed: int, progress: Progress = silent) -> Plan:
        """The layers that go next: the lowest by the metric, or the nearest cut that is exact.

        Raises:
            PlanError: no cut of so many layers is exact.
        """
        text = CalibrationText(self.text, "all" if self.samples is None else self.samples, self.length)
        wanted = Choice(self.metric, count)
        try:
            return choose(checkpoint, wanted, text, compute=Compute(seed=seed), progress=progress).plan
        except ArchitectureError as error:
            raise PlanError(
                parameter("step"),
                expected=f"a cut of {count} layers that {checkpoint.anatomy.architecture} can express",
                found="none",
                fix=f"take another {parameter('step')}",
            ) from error


def heal_in_turns(
    checkpoint: Checkpoint, out: str | Path, turns: Turns, *, resume: bool | None = None, **healing: Any
) -> Healing:
    """heal() after each cut; what is between lies in `<out>.turns` until the end. healing: as for heal().

    A turn that is finished is not repeated, and with resume one that was killed goes on where it was.

    Raises:
        PlanError: as Turns.chosen, or no layer is to go.
        OutputError, InputError: as heal().
    """
    sizes = turns.sizes(checkpoint.anatomy.layers)
    seed = (healing.get("schedule") or Schedule()).seed if turns.seed is None else turns.seed
    writer = CheckpointWriter(out, source=checkpoint.directory, nbytes=checkpoint.weight_bytes)
    unfinished = Unfinished(writer.out, "turns")
    folder = unfinished.open(_asked(checkpoint, turns, healing), resume=resume)
    for number, count in enumerate(sizes, start=1):
        pruned, healed = (folder / f"{number}-{kind}" for kind in ("pruned", "healed"))
        told = _Told(healing.get("progress", silent), f"turn {number} of {len(sizes)}: ")
        if number == len(sizes):
            shutil.rmtree(healed, ignore_errors=True)  # killed after its end; only its result is missing
        if not healed.exists():
            if not pruned.exists():
                prune(checkpoint, turns.chosen(checkpoint, count, seed=seed, progress=told), pruned, progress=told)
            result = heal(Checkpoint.open(str(pruned)), healed, resume=resume, **{**healing, "progress": told})
        checkpoint = Checkpoint.open(str(healed))
    os.rename(healed, writer.out)
    for logs in folder.glob("*.logs"):
        shutil.move(logs, writer.out.with_name(f"{writer.out.name}.logs") / logs.stem)
    unfinished.remove()
    return replace(result, output=writer.out)


@dataclass(frozen=True)
class _Told:
    """Progress of one turn."""

    progress: Progress
    turn: str

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        self.progress(f"{self.turn}{stage}", done, total, note=note)


def _asked(checkpoint: Checkpoint, turns: Turns, healing: Mapping[str, Any]) -> dict[str, Any]:
    """What the outcome depends on; what each turn was asked for is kept with it."""
    schedule, method = (healing.get(name) for name in ("schedule", "method"))
    return {
        "weights": checkpoint.weights_sha256,
        "turns": asdict(turns),
        "data": healing.get("data"),
        "schedule": schedule and schedule.to_dict(),
        "method": method and method.to_dict(),
    }
