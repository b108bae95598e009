"""The output of `shrink --dry-run`: the amounts that fit the minutes, and the memory and disk they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.sizes import Sizes
from shortstack.machine.clock import Clock
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import check_new
from shortstack.machine.memory import Requirements
from shortstack.machine.progress import silent
from shortstack.planning import Plan, Selection, plan_of
from shortstack.planning.selection import layers_to_remove
from shortstack.shrinking.checks import check_shrink, in_words_of_shrink
from shortstack.shrinking.clock import NOTED, Amounts, check_unfinished
from shortstack.shrinking.line import Line
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.route import Route
from shortstack.shrinking.stages import Stages, bytes_in, folder_of


@dataclass(frozen=True)
class ShrinkPreview:
    """A forecast of shrink(): a cut of the same size, the amounts that fit in the time, those reduced, and the resources.

    cut: None where trials find it. heals: whether the recipe does; steps: of healing, None where the clock says how many.
    notes: sentences on what the data or the memory does not allow. seconds: the time limit, math.inf where there is none.
    """

    cut: Plan | None
    heals: bool
    steps: int | None
    amounts: Amounts
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    requirements: Requirements
    seconds: float


def preview_shrink(model: Model, out: Path, options: ShrinkOptions, *, compute: Compute = AUTO) -> ShrinkPreview:
    """Make every check of shrink(), and measure the speed of this machine; nothing is chosen or written."""
    source = Checkpoint.of(model)
    if not out.name:
        check_new(out)
    with in_words_of_shrink():
        route, folder = Route.of(options), folder_of(out)
        clock = Clock(route.seconds(options))
        check_unfinished(folder / NOTED)
        checked = check_shrink(source, {out: route}, options, compute, present=bytes_in(folder))
        line = Line(source, route, options, compute, clock, Stages(folder, {}, source), silent, checked)
        amounts = line.fitting()
    layers = source.anatomy.layers
    cut = None if options.share else _like(route.choice, layers, source.sizes)
    steps = route.healing.schedule.max_steps if route.healing else None
    less, heals = tuple(amounts.less(line.wanted)), route.healing is not None
    notes = *checked.notes, *checked.repair_notes
    return ShrinkPreview(cut, heals, steps, amounts, less, notes, checked.needed, line.clock.seconds)


def _like(choice: Selection, layers: int, sizes: Sizes) -> Plan:
    """Make a plan of the same size."""
    amount = layers_to_remove(choice, layers, sizes)
    return plan_of(choice.layers or range(layers - amount, layers), layers).sized(sizes)
