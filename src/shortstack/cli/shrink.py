"""shrink: the whole line with a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.option_groups import Without
from shortstack.cli.options import Model, Out, Session, going_on
from shortstack.machine.formats import number
from shortstack.study import ShrinkOptions

if TYPE_CHECKING:
    from shortstack.study.shrinker import Shrunk


@verb()
def shrink(
    model: Model,
    output: Out,
    options: ShrinkOptions,
    session: Annotated[Session, Without("stream", "revision", "trust_remote_code")],
) -> None:
    """Make a model shorter, from its name to a healed checkpoint.

    Score, plan, repair, heal and evaluate as a recipe has it; report and model card lie beside the weights.
    """
    from shortstack.study import shrink as shrink_model
    from shortstack.study import workers

    again = f"the same command goes on from there; what is done lies in {output}.study"
    with session.report.bars() as progress, going_on(again):
        shrunk = shrink_model(
            model, output, options, compute=session.compute, launcher=workers.local, progress=progress
        )
    if session.report.json:
        return console.show_json(shrunk.to_dict())
    show_shrunk(shrunk)
    session.report.next_step("evaluate", output)
    return None


def show_shrunk(shrunk: Shrunk) -> None:
    """Whether to keep it; every model's perplexity and answers; the cuts that were compared, and why one was chosen."""
    console.show(shrunk.verdict)
    for tried in shrunk.tried:
        console.show(f"Tried: {tried}.")
    if shrunk.left_out:
        console.show(f"For want of time: {'; '.join(shrunk.left_out)}. --minutes allows more.")
    roles = {"unpruned": "evaluate_base", "pruned": "evaluate_pruned", "healed": "evaluate_healed"}
    models = {name: shrunk.steps[role]["perplexity"] for name, role in roles.items() if role in shrunk.steps}
    rows = [(text, *(number(each[text]["value"]) for each in models.values())) for text in models["unpruned"]]
    console.show_table(f"{shrunk.output}: perplexity", ("text", *models), rows)
    for said in shrunk.beside.answers:
        console.show_answers(said)
    if shrunk.compared:
        rows = [(layers, number(found)) for layers, found in sorted(shrunk.compared.items(), key=lambda each: each[1])]
        console.show_table("cuts that were compared", ("cut", "nats per token"), rows)
    console.show(shrunk.why)
