"""Prune and heal in rounds, the iterative schedules of the paper (Lu et al., 4.3)."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from shortstack.checkpoint import Checkpoint, Model
from shortstack.data import Text
from shortstack.decoder import with_own_text
from shortstack.errors import InputError
from shortstack.healing.config import HealingConfig
from shortstack.healing.healer import HealingRun, heal
from shortstack.healing.result import Healing
from shortstack.healing.resuming import Unfinished
from shortstack.machine.device import Compute
from shortstack.machine.files import rename_new
from shortstack.machine.progress import Progress, silent, under
from shortstack.planning import Selection, select
from shortstack.planning.layer_sets import check_pace, parse_drop
from shortstack.pruning import prune


def prune_iteratively(
    model: Model,
    out: str | Path,
    config: HealingConfig,
    *,
    drop: str | int,
    step: int,
    metric: str = "ppl",
    text: Text | None = None,
    compute: Compute | None = None,
    progress: Progress = silent,
) -> Healing:
    """Remove `step` layers of the base model, heal, and repeat until `drop` are gone; the paper's 1:1:8 is drop 8, step 1.

    Each round selects layers of the model as it is then, by the metric on the text. Models between rounds are in
    `<out>.rounds` until the end; interrupted, the same call goes on from there. compute: of the selection; by default with
    the config's seed and device. Of several processes the first selects and prunes, and all heal.

    Raises:
        PlanError, ArchitectureError: no layer is to go, or a cut is not exact.
        OutputError, InputError: as heal().
    """
    base = Checkpoint.of(model)
    sizes = round_sizes(base, config, drop, step)
    run = HealingRun(base, config, base, progress)
    run.check()
    writer, compute = run.writer(out), compute or Compute(seed=config.seed, device=config.device)
    unfinished, text = Unfinished(writer.out, "rounds"), text or Text()
    with writer.held() if run.is_main else nullcontext():
        rounds = {"drop": str(drop), "step": step, "metric": metric, "text": [text.digest, text.samples, text.length]}
        unfinished.open({**run.settings(), **rounds, "compute": [compute.seed, compute.dtype]})
        if run.is_main and Selection(metric=metric).needs_text:
            text = with_own_text(text, base, compute=compute, progress=progress)
        checkpoint = base
        for number, count in enumerate(sizes, start=1):
            pruned, healed = (unfinished.folder / f"{number}-{kind}" for kind in ("pruned", "healed"))
            shown = under(progress, f"round {number} of {len(sizes)}: ")
            if run.is_main and number == len(sizes):
                shutil.rmtree(healed, ignore_errors=True)  # killed at its end: its result was not returned
            if run.is_main and not healed.exists() and not pruned.exists():
                selection = Selection(metric=metric, drop=count)
                prune(checkpoint, select(checkpoint, selection, text, compute=compute, progress=shown), pruned)
            run.processes.wait_for_everyone()
            if not healed.exists():
                result = heal(checkpoint.derived(pruned), healed, config, base=base, progress=shown)
            checkpoint = checkpoint.derived(healed)
        run.processes.wait_for_everyone()  # all have opened what is renamed now
        if run.is_main:
            rename_new(healed, writer.out)
            for logs in unfinished.folder.glob("*.logs"):
                shutil.move(logs, writer.out.with_name(f"{writer.out.name}.logs") / logs.stem)
            unfinished.remove()
    run.processes.wait_for_everyone()
    return replace(result, output=writer.out)


def round_sizes(base: Checkpoint, config: HealingConfig, drop: str | int, step: int) -> list[int]:
    """Return how many layers go in each round; refuse a time limit, and more layers to train than the last round has."""
    if config.minutes is not None:
        raise InputError("rounds have no time limit; give max_steps, which counts for each", option="minutes")
    total = parse_drop(str(drop), base.anatomy.layers)
    check_pace(step, total)
    config.method.check_fits(base.anatomy.layers - total)
    return [min(step, total - gone) for gone in range(0, total, step)]
