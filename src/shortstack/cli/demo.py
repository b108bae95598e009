"""demo: the embedded example, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.option_groups import Only
from shortstack.cli.options import Reporting, going_on
from shortstack.machine.device import Compute
from shortstack.machine.formats import number, size

if TYPE_CHECKING:
    from shortstack.shrinking.demo import Demo


@verb()
def demo(
    compute: Annotated[Compute, Only("seed")],
    report: Reporting,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New directory for two checkpoints and demo.json.")
    ] = Path("demo-out"),
    minutes: Annotated[float, typer.Option(help="How long all of it may take.", min=0.5)] = 5.0,
) -> None:
    """Make a small model that comes along shorter, and measure it.

    SmolLM2-135M-Instruct loses 4 of its 30 layers, and 8, as `shrink` does it; the minutes are for both.
    """
    from shortstack.shrinking.demo import run

    with report.bars() as progress, going_on("the same command goes on from there"):
        result = run(output, minutes=minutes, seed=compute.seed, progress=progress)
    if report.json:
        return console.show_json(result.to_dict())
    show(result)
    report.say("shortstack shrink MODEL --drop 25% -o small, with a model directory or hub id of yours")
    return None


def show(demo: Demo) -> None:
    """The table: what is saved, and what that costs; then the answers, and what is to be thought of each model."""
    console.show_table(
        "SmolLM2-135M-Instruct with fewer layers",
        ("", *(row.name for row in demo.rows)),
        [
            ("layers", *(str(row.layers) for row in demo.rows)),
            ("parameters", *(f"{row.parameters / 1e6:.1f} M" for row in demo.rows)),
            ("bytes of weights (bf16)", *(size(row.bytes) for row in demo.rows)),
            ("writes, times as fast", *(f"{row.writes:.2f}" for row in demo.rows)),
            ("held-out perplexity", *(number(row.perplexity) for row in demo.rows)),
            ("small writing tasks right", *(str(row.right) for row in demo.rows)),
        ],
    )
    for number_of, prompt in enumerate(demo.prompts):
        console.show_answers(
            {"prompt": prompt, **{row.name: row.answers[number_of] for row in demo.rows if row.answers}}
        )
    for row in demo.rows:
        if row.verdict:
            console.show(f"{row.name}: {row.verdict}")
    console.show_left_out(demo.left_out)
    places = " and ".join(f"{demo.output}/{row.name.replace(' ', '-')}" for row in demo.rows if row.verdict)
    console.show(f"\n{places} open with AutoModelForCausalLM.from_pretrained. {demo.seconds:.0f} s.")
