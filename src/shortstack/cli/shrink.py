"""shrink: the whole line with a recipe."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.option_groups import Only
from shortstack.cli.options import Model, Out, Report
from shortstack.data.sources import TEXT
from shortstack.machine.device import Compute
from shortstack.machine.formats import number
from shortstack.planning.layer_sets import show_layers

if TYPE_CHECKING:
    from shortstack.study.shrinker import Shrunk


class Keep(StrEnum):
    best = "best"
    all = "all"
    none = "none"


@verb()
def shrink(
    model: Model,
    output: Out,
    compute: Annotated[Compute, Only("seed", "device", "dtype")],
    report: Report,
    drop: Annotated[
        str | None,
        typer.Option(help="How much to remove: 25% or a count. Default: the recipe's, or 25%.", show_default=False),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="best, which chooses between plans; another preset (`shortstack ls recipes`); or a file."),
    ] = "best",
    data: Annotated[
        str | None, typer.Option(help="What to heal on. Default: the recipe's, if it names data.", show_default=False)
    ] = None,
    text: Annotated[str, typer.Option(help=f"Calibration text: {TEXT}")] = "pydoc",
    samples: Annotated[int, typer.Option(min=4, help="Calibration windows of 128 tokens.")] = 32,
    perplexity: Annotated[
        str, typer.Option(help="Comma-separated texts to measure on, first the one to choose by.")
    ] = ("pydoc"),
) -> None:
    """Make a model shorter, from its name to a healed checkpoint.

    Score, plan, repair, heal and evaluate as a recipe has it; report and model card lie beside the weights.
    """
    from shortstack.study import shrink as shrink_model
    from shortstack.study import workers as launching
    from shortstack.study.shrinker import Looks

    looks = Looks(
        text=text,
        samples=samples,
        perplexity=tuple(name.strip() for name in perplexity.split(",")),
        seed=compute.seed,
        device=compute.device,
        dtype=compute.dtype,
    )
    with report.bars() as progress:
        found = shrink_model(
            model,
            output,
            drop=drop,
            recipe=recipe,
            data=data,
            looks=looks,
            launcher=launching.local,
            progress=progress,
        )
    if report.json:
        return console.show_json(found.to_dict())
    show_shrunk(found)
    report.next_step("evaluate", output)
    return None


def show_shrunk(found: Shrunk) -> None:
    """The plans that were compared and why one was chosen; then every model's perplexity."""
    if found.candidates:
        rows = [
            (
                each["metric"],
                show_layers(each["removed"]) if each["removed"] else "-",
                number(each["perplexity"]) if each["perplexity"] else f"failed: {each['error']}",
            )
            for each in found.candidates
        ]
        console.show_table("plans, each repaired", ("layers chosen by", "removed", "perplexity"), rows)
        console.show(found.why)
    roles = {"unpruned": "evaluate_base", "pruned": "evaluate_pruned", "healed": "evaluate_healed"}
    judged = {name: found.steps[role]["perplexity"] for name, role in roles.items() if role in found.steps}
    texts = list(judged["unpruned"])
    measured = [(text, *(number(each[text]["value"]) for each in judged.values())) for text in texts]
    console.show_table(f"{found.output}: perplexity", ("text", *judged), measured)
