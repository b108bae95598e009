"""heal: train a pruned checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from shortstack.cli import console
from shortstack.cli.options import (
    CALIBRATION,
    PICTURE,
    RECORDED,
    Base,
    Calibration,
    CommonOptions,
    Out,
    OutputOptions,
    expand_fields,
    group,
    resume_hint,
)
from shortstack.errors import InputError
from shortstack.healing import HealOptions
from shortstack.machine.files import check_new
from shortstack.machine.formats import show_layers
from shortstack.machine.options import given, options
from shortstack.machine.progress import first_process

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.healing import Healing


@options
class RoundOptions:
    """With --layers-per-round: how much to remove in all, and how layers are selected."""

    drop: str | None = Field(None, description="With --layers-per-round: how much to remove in all, 25% or a count.")
    metric: str = Field("ppl", description="With --layers-per-round: metric to select layers by.")


def heal(
    directory: Annotated[str, Parameter(help="The pruned model; the base model with --layers-per-round.")],
    /,
    *,
    output: Out,
    recipe: Annotated[
        str | None, Parameter(help="A preset (`shortstack list recipes`) or a .yaml file; other options override it.")
    ] = None,
    base: Base = RECORDED,
    plot: Annotated[Path | None, PICTURE, Parameter(help="Draw the loss curve: an .svg file.")] = None,
    typed: Annotated[HealOptions, expand_fields(group("Healing"))] = HealOptions(),
    rounds: Annotated[RoundOptions, expand_fields(group("Rounds", 2))] = RoundOptions(),
    calibration: Annotated[Calibration, expand_fields(CALIBRATION)] = Calibration(),
    session: Annotated[CommonOptions, expand_fields(without="seed|dtype|device|stream|device_map")] = CommonOptions(),
) -> None:
    """Train a pruned checkpoint to get back what it lost.

    Outputs of frozen layers are computed once and cached on disk.

    $ shortstack heal pruned --recipe best --data my.txt -o healed
    """
    from shortstack.healing import heal as heal_model
    from shortstack.healing import prune_iteratively
    from shortstack.healing.recipes import named_by_line, with_recipe
    from shortstack.machine.clock import Clock

    began = time.monotonic()
    values: dict[str, Any] = {**given(typed), **given(rounds), **given(calibration)}
    with named_by_line(recipe, values):
        values = with_recipe(values, recipe) if recipe else values
        settings = {name: values.pop(name) for name in [*values] if hasattr(typed, name)}
        config, step = HealOptions(**settings).config, settings.get("layers_per_round")
        config.check()
        _check_rounds(step, values)
        check_new(output, make_folders=True)
        clock = Clock(60 * config.minutes, used=time.monotonic() - began) if config.minutes else None
        with session.report.bars() as progress, resume_hint("repeat the command; at most a minute of training is lost"):
            model = session.source.open(directory, progress)
            if recipe and not step:
                _warn(model, session.report)
            if step:
                drop, metric = values.pop("drop"), values.pop("metric", rounds.metric)
                how: dict[str, Any] = {"drop": drop, "step": step, "metric": metric, "progress": progress}
                result = prune_iteratively(model, output, config, text=replace(calibration, **values).text, **how)
            else:
                opened = session.open_base(base, model, progress) if config.needs_base else None
                result = heal_model(model, output, config, base=opened, clock=clock, progress=progress)
    if not first_process():
        return
    session.report.result(result, plot=plot)
    if step and not session.report.json:
        console.show(_removed(model, result))
    session.report.next_measure(output, base, *session.alone.command_line)


def _check_rounds(step: int | None, rounds: Mapping[str, Any]) -> None:
    """Refuse options of rounds without them, and rounds without an end."""
    if step and "drop" not in rounds:
        raise InputError("give how much to remove in all, such as 25%", option="drop")
    for name in () if step else rounds:
        raise InputError("it needs --layers-per-round; add that, or leave it out", option=name)


def _removed(model: Checkpoint, result: Healing) -> str:
    from shortstack.checkpoint import Checkpoint

    kept = set(Checkpoint.open(result.output).record["layer_map"].values())
    before = set((model.record.get("layer_map") or {}).values()) or set(range(model.anatomy.layers))
    return f"Layers {show_layers(sorted(before - kept))} were removed in total. The table shows the last round."


def _warn(model: Checkpoint, report: OutputOptions) -> None:
    """Warn that heal does not remove the layers that a recipe selects."""
    if model.record.get("verb") not in ("prune", "heal"):
        report.warn(f"{model.source} has all its layers, and heal removes none; use `shortstack shrink`")
