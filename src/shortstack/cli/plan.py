"""plan: select the layers to remove."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shortstack.checkpoint.file_names import DEMO_HUB_ID, is_demo
from shortstack.cli.options import (
    CALIBRATION,
    MODEL,
    NEW,
    Calibration,
    CommonOptions,
    check_unused,
    expand_fields,
    group,
)
from shortstack.machine.files import atomic_write, check_new
from shortstack.machine.formats import show_layers
from shortstack.machine.progress import say
from shortstack.planning import Plan, Selection, select
from shortstack.scoring import Scores

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint

WHICH = group("Layers to remove")


def plan(
    model_or_scores: Annotated[str, Parameter(help=f"A scores.json, or a model. {MODEL}")],
    /,
    *,
    output: Annotated[Path | None, NEW, Parameter(alias="-o", help="Write the plan to this JSON file.")] = None,
    mergekit: Annotated[Path | None, NEW, Parameter(help="Also write it as mergekit slices to this YAML file.")] = None,
    selection: Annotated[Selection, expand_fields(WHICH)] = Selection(),
    calibration: Annotated[Calibration, expand_fields(CALIBRATION)] = Calibration(),
    session: Annotated[CommonOptions, expand_fields()] = CommonOptions(),
) -> None:
    """Select the layers to remove, from scores or a model.

    A model is scored first when the metric needs it.

    $ shortstack plan scores.json --metric ppl --drop 25% -o plan.json
    """
    checkpoint: Checkpoint | None = None
    origin: tuple[str, ...] = tuple(session.source.command_line)
    if _is_scores(model_or_scores):
        from shortstack.planning.selector import plan_from_scores

        check_unused(model_or_scores, calibration, session.compute, session.source)
        scores = Scores.load(model_or_scores)
        made = plan_from_scores(scores, selection)
        model, revision = str(scores.model.get("source", "MODEL")), scores.model.get("revision")
        origin = ("--revision", str(revision)) if revision and not os.path.exists(model) else ()
    else:
        model = model_or_scores
        if selection.layers is not None:
            check_unused("--layers", calibration, session.compute)
        with session.report.bars() as progress:
            checkpoint = session.source.open(model, progress)
            made = select(checkpoint, selection, calibration.text, compute=session.compute, progress=progress)
        say_moved(made)
    session.report.result(made, output)
    if mergekit:
        from shortstack.planning.mergekit import to_mergekit

        check_new(mergekit)  # again: hours may have passed since it was read
        with atomic_write(mergekit) as partial:
            named = DEMO_HUB_ID if is_demo(model) else model
            partial.write_text(to_mergekit(made, named), encoding="utf-8")
    how = ("--plan", output) if output else ("--layers", show_layers(made.removed).replace(" ", ""))
    session.report.next_prune(model, checkpoint, *how, *origin)


def say_moved(plan: Plan) -> None:
    """Print, on stderr, that another cut than the selected one is exact."""
    if plan.wanted:
        selected, moved = show_layers(plan.wanted), show_layers(plan.removed)
        say(f"Layers {selected} cannot be cut exactly from this model; nearest exact cut: {moved}.")


def _is_scores(name: str) -> bool:
    """Return whether an argument names a scores file rather than a model; .gguf is the one model that is a file."""
    return not os.path.isdir(name) and (name.endswith(".json") or os.path.isfile(name)) and not name.endswith(".gguf")
