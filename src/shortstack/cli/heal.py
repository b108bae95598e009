"""heal: train a pruned checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortstack.cli import console, plots
from shortstack.cli.app import verb
from shortstack.cli.option_groups import Only
from shortstack.cli.options import Out, Report, Source
from shortstack.errors import OutputError
from shortstack.healing.options import Asked, Course, Going, InTurns, Learned, Loss, Part
from shortstack.machine.device import Compute
from shortstack.machine.files import check_new
from shortstack.machine.formats import size
from shortstack.machine.progress import first_process, say
from shortstack.planning.layer_sets import show_layers

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.healing import Healing
    from shortstack.healing.forecast import Forecast


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
    compute: Annotated[Compute, Only("device")],
    source: Source,
    report: Report,
) -> None:
    """Train a pruned checkpoint to get back what it lost.

    What is frozen is computed once and kept on disk.
    """
    asked, typed = Asked(learned, part, loss, course, turns), functools.partial(_typed, context)
    with _lines_named(going.recipe, typed):
        if going.recipe:
            asked = _filled(asked, going.recipe, typed)
        asked.check()
        asked.part.check_typed(typed)
        _check_going(going, output)
        with report.bars() as progress:
            alone = replace(source, revision=None)  # --revision is of the model that heals
            checkpoint = source.open(directory, progress)
            _remark(checkpoint, going.recipe, asked, report)
            options: dict[str, Any] = {
                **asked.arguments(),
                "teacher": alone.open(asked.loss.teacher, progress) if asked.loss.teacher else None,
                "device": compute.device,
                "progress": progress,
            }
            if going.dry_run:
                return _foretell(checkpoint, options, asked.turns, report)
            result = _healed(checkpoint, output, asked.turns, going, options)
    if not first_process():
        return None
    if going.plot:
        plots.loss_curve(result.history, going.plot, title=str(output))
    if report.json:
        console.show_json(result.to_dict())
    else:
        show_healing(result)
        if asked.turns.step:
            console.show(_gone(checkpoint, result))
    report.next_step("evaluate", output, *alone.words)
    return None


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _lines_named(recipe: str | None, typed: Callable[[str], bool]) -> AbstractContextManager[None]:
    """While it lasts, errors about what the recipe sets name its line."""
    if not recipe:
        return nullcontext()
    from shortstack.healing.recipes import named_by_line

    return named_by_line(recipe, typed)


def _filled(asked: Asked, recipe: str, typed: Callable[[str], bool]) -> Asked:
    """With the recipe's values where nothing was typed."""
    from shortstack.healing.recipes import filled

    groups = {each.name: getattr(asked, each.name) for each in fields(asked)}
    return Asked(**filled(groups, recipe, typed=typed))


def _check_going(going: Going, output: Path) -> None:
    """Say what is wrong with where results go, before anything heavy is imported."""
    going.check_loggers()
    if going.plot:
        plots.check_picture(going.plot)
    if going.resume and output.is_dir():
        raise OutputError(
            output,
            expected="an unfinished run to go on with",
            found="its output: that run has ended",
            fix="leave it, or name another -o for a new run",
        )
    if not going.dry_run:
        check_new(output, make_folders=True)


def _healed(checkpoint: Checkpoint, output: Path, turns: InTurns, going: Going, options: Mapping[str, Any]) -> Healing:
    """heal(), or heal_in_turns() where turns are asked for."""
    from shortstack.healing import Turns, heal_in_turns
    from shortstack.healing import heal as heal_checkpoint
    from shortstack.healing.unfinished import Unfinished

    if going.resume and first_process():
        say(Unfinished(output, "turns" if turns.step else "training").told())
    kept: dict[str, Any] = {"cache": going.cache, "resume": going.resume, "loggers": going.loggers}
    if turns.step and turns.drop:
        return heal_in_turns(checkpoint, output, Turns(turns.drop, turns.step, **turns.chosen_by), **options, **kept)
    return heal_checkpoint(checkpoint, output, **options, **kept)


def _gone(checkpoint: Checkpoint, result: Healing) -> str:
    """What all turns removed; the table is of the last one."""
    from shortstack.checkpoint import Checkpoint

    kept = set(Checkpoint.open(result.output).record["layer_map"].values())
    before = checkpoint.record.get("layer_map") or {}
    first = set(before.values()) or set(range(checkpoint.anatomy.layers))
    return f"Layers {show_layers(sorted(first - kept))} went in all. The table is of the last turn."


def _remark(checkpoint: Checkpoint, recipe: str | None, asked: Asked, report: Report) -> None:
    """Say what somebody may expect that will not be done."""
    part = asked.part
    if recipe and not asked.turns.step and checkpoint.record.get("verb") not in ("prune", "heal"):
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
        sizes = Turns(turns.drop, turns.step, **turns.chosen_by).sizes(checkpoint.anatomy.layers)
        found = replace(found, turns=tuple(sizes))
    if report.json:
        return console.show_json(found.to_dict())
    show_forecast(found)
    report.say("the same command without --dry-run")
    return None


LOSSES = {"sft": "loss", "distill": "distance from the teacher"}


def show_healing(healing: Healing) -> None:
    """What was trained, for how long, and what it did to the loss."""
    found = healing.to_dict()
    loss, kind = found["loss"], LOSSES[healing.objective]
    rows = [
        ("trained parameters", f"{found['trainable_parameters']:,}"),
        ("optimizer steps", str(found["steps"])),
        (
            f"training {kind}, first to last",
            f"{loss['first']:.4f} to {loss['last']:.4f}" if loss["first"] is not None else "no entry",
        ),
        (f"held-out {kind}, before to best", f"{loss['held_out_before']:.4f} to {loss['held_out']:.4f}"),
        ("tokens per second", f"{found['tokens_per_s']:,.0f}"),
        ("seconds", f"{found['seconds']:.0f}"),
        ("peak memory", size(found["peak_rss_bytes"])),
    ]
    console.show_table(f"healed: {healing.output}", ("", healing.method), rows)
    if not found["best_step"]:
        console.show("No held-out loss was lower than the one before training: the weights are as they were.")
    elif found["best_step"] < found["steps"]:
        console.show(f"The weights are those of step {found['best_step']}, where the held-out loss was lowest.")
    if found["stopped"]:
        console.show(f"Training ended at step {found['steps']}: {found['stopped']}.")
    elif found["skipped_steps"]:
        console.show(f"{found['skipped_steps']} steps were left out: their gradient was no number.")


def show_forecast(found: Forecast) -> None:
    """What healing would train, and what that takes."""
    rows = [
        ("trained parameters", f"{found.trainable_parameters:,}"),
        (
            "in",
            f"{len(found.trained)} modules, from {found.trained[0]} to {found.trained[-1]}" if found.trained else "-",
        ),
        ("samples, held out", f"{found.samples:,}, {found.held_out:,}"),
        ("tokens, of them learnt", f"{found.tokens:,}, {found.learnt_tokens:,}"),
        ("optimizer steps", f"{found.steps:,}"),
        ("memory, about", size(found.memory_bytes)),
        (
            "disk for what is computed once",
            f"{size(found.cache_bytes)}, {size(found.missing_bytes)} to write",
        ),
        ("time, about", f"{found.seconds:,.0f} s"),
    ]
    if found.turns:
        gone = ", ".join(map(str, found.turns))
        rows.append(("turns, each at most that", f"{len(found.turns)}; before them go {gone} layers"))
    console.show_table("dry run: nothing is trained", ("", "healing"), rows)
