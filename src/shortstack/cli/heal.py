"""heal: train a pruned checkpoint."""

from __future__ import annotations

import time
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_type_hints

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.dry_run import CHECKS, show_dry_run
from shortstack.cli.options import PICTURE, Out, Reporting, Session, flat, going_on, group
from shortstack.errors import OutputError
from shortstack.healing import IterativeSchedule, Objective, Partial, Schedule, TrainingData
from shortstack.healing.methods import MethodOptions, check_known
from shortstack.healing.task import task_of
from shortstack.machine.files import check_new
from shortstack.machine.formats import show_layers, size
from shortstack.machine.options import option, options_of
from shortstack.machine.progress import first_process, say

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.healing import Healing, HealingTask
    from shortstack.healing.preview import Preview
    from shortstack.machine.progress import Progress

METHOD_OPTIONS = [field.name for field in fields(MethodOptions) if field.name != "method"]


@dataclass(frozen=True)
class HealRun:
    """How a run is kept, and what it tells."""

    recipe: str | None = option(
        None, help="A preset (`shortstack list recipes`) or a .yaml file; command-line options override it."
    )
    teacher: str | None = option(None, help="The unpruned model; required for --loss distill and --data self.")
    resume: bool | None = option(None, help="Continue an unfinished run, or restart it; required if one exists.")
    dry_run: bool = option(False, help=CHECKS)
    report_to: str | None = option(
        None, help="Comma-separated loggers: tensorboard (its files go to OUTPUT.logs), trackio, wandb."
    )
    plot: Annotated[Path | None, PICTURE] = option(None, help="Draw the loss curve: an .svg file.")

    @property
    def loggers(self) -> list[str]:
        return [name.strip() for name in self.report_to.split(",")] if self.report_to else []

    def check(self, output: Path) -> None:
        """Say what is wrong with where results go, before anything heavy is imported."""
        if self.resume and output.is_dir():
            raise OutputError(
                "a finished output",
                expected="an unfinished run to continue",
                fix="leave it, or name another output for a new run",
                where=output,
            )
        check_new(output, make_folders=True)


HEADINGS = {
    MethodOptions: "Method",
    TrainingData: "Data",
    Objective: "Objective",
    Schedule: "Schedule",
    IterativeSchedule: "Iterative pruning",
}


def _options() -> dict[str, Any]:
    options: dict[str, Any] = {}
    for place, (component, title) in enumerate(HEADINGS.items(), 1):
        hints, heading = get_type_hints(component), group(title, place)
        for name, default, known in options_of(component):
            off = default is False or default in (None, MISSING)
            shown = Parameter(group=heading, help=known.help, show_default=False if off else str(default))
            options[name] = Annotated[hints[name], shown]
    return options


if TYPE_CHECKING:
    Given = dict[str, Any]
else:
    Given = TypedDict("Given", _options(), total=False)  # what is typed, alone: a recipe has the rest


def heal(
    directory: Annotated[str, Parameter(help="The pruned checkpoint (or any model).")],
    /,
    *,
    output: Out,
    run: Annotated[HealRun, flat()] = HealRun(),
    typed: Annotated[Given, flat()] = Given(),
    session: Annotated[Session, flat(without="seed|dtype|stream|device_map")] = Session(),
) -> None:
    """Train a pruned checkpoint to get back what it lost.

    Outputs of frozen layers are computed once and cached on disk.

    $ shortstack heal pruned --recipe best --data my.txt --teacher org/model -o out
    """
    from shortstack.healing.recipes import named_by_line, with_recipe

    began = time.monotonic()
    with named_by_line(run.recipe, typed):
        values = with_recipe(typed, run.recipe) if run.recipe else typed
        turns = IterativeSchedule.of_options(values)
        task = task_of(values, compute=session.compute, loggers=run.loggers)
        check_known(type(task.method), {name: typed[name] for name in METHOD_OPTIONS if name in typed})
        task.check(run.teacher)
        run.check(output)
        with session.report.bars() as progress:
            checkpoint = session.source.open(directory, progress)
            _remark(checkpoint, run.recipe, task, turns, session.report)
            task = replace(
                task, teacher=session.open_unpruned(run.teacher, checkpoint, progress) if run.teacher else None
            )
            if run.dry_run:
                from shortstack.healing.preview import preview

                foreseen = preview(checkpoint, output, task, turns, resume=run.resume)
                return _show_preview(foreseen, output, session.report)
            with going_on("with --resume the same command goes on from its last saved step"):
                result = _healed(checkpoint, output, task, turns, run, progress, began)
    if not first_process():
        return None
    session.report.result(result, plot=run.plot)
    if turns and not session.report.json:
        console.show(_gone(checkpoint, result))
    session.report.next_measure(output, checkpoint.made_from or (turns and directory), *session.alone.command_line)
    return None


def _healed(
    checkpoint: Checkpoint,
    output: Path,
    task: HealingTask,
    turns: IterativeSchedule | None,
    run: HealRun,
    progress: Progress,
    began: float,
) -> Healing:
    from shortstack.healing import heal as heal_checkpoint
    from shortstack.healing import heal_in_turns
    from shortstack.healing.healer import started_clock
    from shortstack.healing.unfinished import Unfinished

    if run.resume and first_process():
        say(Unfinished(output, "turns" if turns else "training").summary())
    if turns:
        return heal_in_turns(checkpoint, output, turns, task, resume=run.resume, progress=progress)
    clock = started_clock(task.schedule, output, resume=run.resume, used=time.monotonic() - began)
    return heal_checkpoint(checkpoint, output, task, resume=run.resume, progress=progress, clock=clock)


def _gone(checkpoint: Checkpoint, result: Healing) -> str:
    from shortstack.checkpoint import Checkpoint

    kept = set(Checkpoint.open(result.output).record["layer_map"].values())
    before = checkpoint.record.get("layer_map") or {}
    first = set(before.values()) or set(range(checkpoint.anatomy.layers))
    return f"Layers {show_layers(sorted(first - kept))} were removed in total. The table shows the last turn."


def _remark(
    checkpoint: Checkpoint, recipe: str | None, task: HealingTask, turns: IterativeSchedule | None, report: Reporting
) -> None:
    """Say what somebody may expect of a recipe that will not be done."""
    if not recipe:
        return
    if not turns and checkpoint.record.get("verb") not in ("prune", "heal"):
        report.warn(
            f"{checkpoint.source} has no layers removed, and heal removes none; `shortstack shrink` prunes by the recipe "
            "and then heals"
        )
    method = task.method
    if isinstance(method, Partial) and method.head is None and not method.untie_head and checkpoint.anatomy.tied:
        report.warn("the head is the embedding matrix and stays frozen; --untie-head trains a head of its own")


def _show_preview(preview: Preview, output: Path, report: Reporting) -> None:
    rows = [
        ("trained parameters", f"{preview.trainable_parameters:,}"),
        ("samples, held out", f"{preview.samples:,}, {preview.held_out:,}"),
        ("tokens of an epoch", f"{preview.tokens:,}"),
        ("optimizer steps", "as many as --minutes leaves time for" if preview.steps is None else f"{preview.steps:,}"),
        ("to write to the cache", size(preview.cache_bytes)),
    ]
    if preview.turns:
        gone = ", ".join(map(str, preview.turns))
        rows.append(("turns (figures above: the largest)", f"{len(preview.turns)}, after removing {gone} layers"))
    show_dry_run(rows, preview.requirements, report, output=output, data=preview.to_dict())
