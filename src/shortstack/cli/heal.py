"""heal: train a pruned checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from shortstack.cli import console
from shortstack.cli.options import PICTURE, Out, Reporting, Session, flat, going_on, group
from shortstack.errors import InputError
from shortstack.healing import HealOptions, Partial
from shortstack.machine.files import check_new
from shortstack.machine.formats import show_layers
from shortstack.machine.options import given, options
from shortstack.machine.progress import first_process

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.healing import Healing, HealingConfig
    from shortstack.machine.progress import Progress


@options
class RoundOptions:
    """With --layers-per-round: how much to remove in all, and how layers are selected."""

    drop: str | None = Field(None, description="How much to remove in all: 25% or a count.")
    metric: str | None = Field(None, description="How layers are selected. Default: ppl.")
    text: str | None = Field(None, description="Calibration text. Default: mix.")
    samples: int | str | None = Field(None, description="Calibration windows per text, or all. Default: 10.")
    length: int | None = Field(None, ge=4, description="Tokens per calibration window. Default: 128.")


def heal(
    directory: Annotated[str, Parameter(help="The pruned model; the base model with --layers-per-round.")],
    /,
    *,
    output: Out,
    recipe: Annotated[
        str | None, Parameter(help="A preset (`shortstack list recipes`) or a .yaml file; other options override it.")
    ] = None,
    base: Annotated[
        str | None,
        Parameter(
            help="Base model, for --loss distill and --data self. Default: the one on record in the pruned model."
        ),
    ] = None,
    plot: Annotated[Path | None, PICTURE, Parameter(help="Draw the loss curve: an .svg file.")] = None,
    typed: Annotated[HealOptions, flat(group("Healing"))] = HealOptions(),
    rounds: Annotated[RoundOptions, flat(group("Iterative pruning", 2))] = RoundOptions(),
    session: Annotated[Session, flat(without="seed|dtype|device|stream|device_map")] = Session(),
) -> None:
    """Train a pruned checkpoint to get back what it lost.

    Outputs of frozen layers are computed once and cached on disk.

    $ shortstack heal pruned --recipe best --data my.txt -o healed
    """
    from shortstack.healing.recipes import named_by_line, with_recipe

    began = time.monotonic()
    values: dict[str, Any] = {**given(typed), **given(rounds)}
    with named_by_line(recipe, values):
        values = with_recipe(values, recipe) if recipe else values
        settings = {name: values.pop(name) for name in [*values] if hasattr(typed, name)}
        config = HealOptions(**settings).config
        config.check()
        _check_rounds(settings, values)
        check_new(output, make_folders=True)
        with session.report.bars() as progress:
            checkpoint = session.source.open(directory, progress)
            _warn(checkpoint, config, session.report, pruned=bool(recipe and not values))
            opened = _base(base, checkpoint, session, progress) if config.needs_base and not values else None
            with going_on("repeat the command; at most a minute of training is lost"):
                result = _heal(checkpoint, output, config, opened, settings, values, progress, began)
    if not first_process():
        return
    session.report.result(result, plot=plot)
    if values and not session.report.json:
        console.show(_removed(checkpoint, result))
    session.report.next_measure(output, checkpoint.made_from or (values and directory), *session.alone.command_line)


def _check_rounds(settings: dict[str, Any], rounds: dict[str, Any]) -> None:
    """Refuse options of rounds without them, and rounds without an end."""
    if settings.get("layers_per_round") is None:
        for name in rounds:
            raise InputError("it needs --layers-per-round; add that, or leave it out", option=name)
    elif "drop" not in rounds:
        raise InputError("give how much to remove in all, such as 25%", option="drop")


def _heal(
    checkpoint: Checkpoint,
    output: Path,
    config: HealingConfig,
    base: Checkpoint | None,
    settings: dict[str, Any],
    rounds: dict[str, Any],
    progress: Progress,
    began: float,
) -> Healing:
    from shortstack.healing import heal as heal_checkpoint
    from shortstack.healing import prune_iteratively
    from shortstack.machine.clock import Clock

    if rounds:
        text = Text(**{name: rounds.pop(name) for name in ("text", "samples", "length") if name in rounds})
        step = settings["layers_per_round"]
        return prune_iteratively(checkpoint, output, config, step=step, text=text, **rounds, progress=progress)
    clock = Clock(60 * config.minutes, used=time.monotonic() - began) if config.minutes else None
    return heal_checkpoint(checkpoint, output, config, base=base, clock=clock, progress=progress)


def _base(base: str | None, checkpoint: Checkpoint, session: Session, progress: Progress) -> Checkpoint:
    """Open the base model: the one that is named, or the one on record."""
    name = base or checkpoint.made_from
    if not name:
        raise InputError("no base model is on record; name it, for --loss distill and --data self", option="base")
    try:
        return session.open_unpruned(name, checkpoint, progress)
    except InputError as error:
        raise error.about("base") from None


def _removed(checkpoint: Checkpoint, result: Healing) -> str:
    from shortstack.checkpoint import Checkpoint

    kept = set(Checkpoint.open(result.output).record["layer_map"].values())
    before = checkpoint.record.get("layer_map") or {}
    first = set(before.values()) or set(range(checkpoint.anatomy.layers))
    return f"Layers {show_layers(sorted(first - kept))} were removed in total. The table shows the last round."


def _warn(checkpoint: Checkpoint, config: HealingConfig, report: Reporting, *, pruned: bool) -> None:
    """Warn about parts of a recipe that heal ignores; pruned: the model should have lost layers."""
    if pruned and checkpoint.record.get("verb") not in ("prune", "heal"):
        report.warn(f"{checkpoint.source} has all its layers, and heal removes none; use `shortstack shrink`")
    method = config.method
    usual = isinstance(method, Partial) and method.train_head is None and not method.untie_embeddings
    if usual and checkpoint.anatomy.tied:
        report.warn("the head is tied to the embedding and stays frozen; --untie-embeddings trains a copy of it")
