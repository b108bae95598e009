"""plan: choose the layers to remove."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.checkpoint import Sizes
from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.choice import Calibration, Choice
from shortstack.cli.options import MODEL, Compute, Report, Source, check_unused
from shortstack.errors import InputError
from shortstack.machine.files import check_new, read_json
from shortstack.machine.formats import number, size
from shortstack.planning.layer_sets import show_layers
from shortstack.scoring import Scores

if TYPE_CHECKING:
    from shortstack.planning import Plan


@verb("plan")
def plan_verb(
    model_or_scores: Annotated[str, typer.Argument(help=f"A scores.json, or a model. {MODEL}", show_default=False)],
    choice: Choice,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan to this JSON file.")] = None,
) -> None:
    """Choose the layers to remove, from scores or a model.

    A model is scored first when the metric needs it.
    """
    if output:
        check_new(output)
    choice.check()
    if _is_scores(model_or_scores):
        if choice.measures:
            raise InputError(
                model_or_scores,
                expected="a model, to measure shorter forms of it",
                found="scores of the whole model",
                fix="name the model instead of the scores",
            )
        check_unused(model_or_scores, calibration, compute, source)
        scores = Scores.from_dict(read_json(Path(model_or_scores)), where=model_or_scores)
        chosen = choice.plan(scores, compute.seed)
        chosen = chosen.sized(Sizes.from_dict(scores.model, where=model_or_scores))
        model = str(scores.model.get("source", "MODEL"))
    else:
        model = model_or_scores
        if choice.layers is not None:
            check_unused("--layers", calibration, compute)
        with report.bars() as progress:
            checkpoint = source.open(model, progress)
            chosen, _ = choice.plan_for(checkpoint, calibration, compute, progress)
            chosen = chosen.sized(checkpoint.sizes)
    if output:
        chosen.save(output)
    if report.json:
        return console.show_json(chosen.to_dict())
    show_plan(chosen)
    how = ("--plan", output) if output else ("--layers", show_layers(chosen.removed).replace(" ", ""))
    report.next_step("prune", model, *how, *source.words, "-o", "pruned")
    return None


def _is_scores(name: str) -> bool:
    """Whether an argument names a scores file rather than a model; .gguf is the one model that is a file."""
    return not os.path.isdir(name) and (name.endswith(".json") or os.path.isfile(name)) and not name.endswith(".gguf")


def show_plan(chosen: Plan) -> None:
    """What goes, what stays, and what that saves."""

    def change(before: str, after: str, share: float) -> str:
        return f"{before} to {after} ({share:+.1%})"

    rows = [
        ("removed", show_layers(chosen.removed)),
        ("kept", show_layers(chosen.kept)),
        ("layers", f"{chosen.layers} to {len(chosen.kept)}"),
    ]
    if chosen.parameters and chosen.bytes:
        p, b = chosen.parameters, chosen.bytes
        rows.append(("parameters", change(f"{p.before:,}", f"{p.after:,}", p.after / p.before - 1)))
        rows.append(("bytes", change(size(b.before), size(b.after), b.after / b.before - 1)))
    console.show_table("plan (layers numbered from 0, ranges inclusive)", ("", chosen.strategy), rows)
    if chosen.compared:
        sets = [(name, number(value)) for name, value in chosen.compared.items()]
        console.show_table("KL from the unpruned model on held-out tokens, nats", ("layers chosen by", "KL"), sets)
