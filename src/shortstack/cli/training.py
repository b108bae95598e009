"""The verb that trains: heal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortstack import console, plots, tables
from shortstack.cli.application import verb
from shortstack.cli.options import Device, Out, Report, Source
from shortstack.errors import InputError
from shortstack.healing_options import Course, Going, InTurns, Learned, Loss, Part, heal_arguments
from shortstack.methods import method_named

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint


@verb()
def heal(
    context: typer.Context,
    directory: Annotated[str, typer.Argument(help="The pruned checkpoint (or any model).", show_default=False)],
    output: Out,
    learned: Learned,
    part: Part,
    loss: Loss,
    course: Course,
    turns: InTurns,
    going: Going,
    source: Source,
    report: Report,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
) -> None:
    """Train a pruned checkpoint to get back what it lost.

    What is frozen is computed once and kept on disk.
    """
    if going.recipe:
        groups = {"learned": learned, "part": part, "loss": loss, "course": course, "turns": turns}
        from shortstack.recipe import filled

        found = filled(groups, going.recipe, typed=lambda name: _typed(context, name))
        learned, part, loss, course, turns = (found[name] for name in groups)
    turns.check()
    method_named(part.method).check()
    if not learned.data:
        raise InputError("--data", expected="text or instructions to learn from", found="none", fix="add --data pydoc")
    if going.plot:
        plots.check_picture(going.plot)
    alone = replace(source, revision=None)  # --revision is of the model that heals
    with report.bars() as progress:
        checkpoint = source.open(directory, progress)
        _remark(checkpoint, going.recipe, part, turns, report)
        options: dict[str, Any] = {
            **heal_arguments(learned, part, loss, course),
            "teacher": alone.open(loss.teacher, progress) if loss.teacher else None,
            "device": device.value,
            "progress": progress,
        }
        if going.dry_run:
            return _foretell(checkpoint, options, turns, report)
        from shortstack.healing import Turns, heal_in_turns
        from shortstack.healing import heal as heal_checkpoint

        options |= {"cache": going.cache, "resume": going.resume, "loggers": going.loggers}
        if turns.step and turns.drop:
            how = Turns(turns.drop, turns.step, turns.metric or "ppl")
            result = heal_in_turns(checkpoint, output, how, **options)
        else:
            result = heal_checkpoint(checkpoint, output, **options)
    if not console.first_process():
        return None
    if going.plot:
        plots.loss_curve(result.history, going.plot, title=str(output))
    if report.json:
        console.show_json(result.to_dict())
    else:
        tables.show_healing(result)
    report.next_step("evaluate", output, *alone.words)
    return None


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _remark(checkpoint: Checkpoint, recipe: str | None, part: Part, turns: InTurns, report: Report) -> None:
    """Say what somebody may expect that will not be done."""
    if recipe and not turns.step and checkpoint.record.get("verb") not in ("prune", "heal"):
        report.warn(
            f"{checkpoint.source} is not cut, and heal only heals: `shortstack shrink` carries out a recipe's plan, too"
        )
    if recipe and part.method == "partial" and part.head is None and not part.untie_head and checkpoint.anatomy.tied:
        report.warn("the head is the embedding matrix and stays frozen; --untie-head trains a head of its own")


def _foretell(checkpoint: Checkpoint, options: Mapping[str, Any], turns: InTurns, report: Report) -> None:
    """What healing would take; in turns, what the first of them would."""
    from shortstack.healing import Turns
    from shortstack.healing.forecast import forecast
    from shortstack.healing.healer import Task

    found = forecast(Task.of(checkpoint, **options))
    if turns.step and turns.drop:
        sizes = Turns(turns.drop, turns.step, turns.metric or "ppl").sizes(checkpoint.anatomy.layers)
        found = replace(found, turns=tuple(sizes))
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_forecast(found)
    report.say("the same command without --dry-run")
    return None
