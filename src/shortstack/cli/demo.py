"""demo: the embedded example, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.option_groups import Only
from shortstack.cli.options import Reporting
from shortstack.machine.device import Compute
from shortstack.machine.formats import number, size
from shortstack.planning.layer_sets import show_layers

if TYPE_CHECKING:
    from shortstack.study.demo import Demo


@verb()
def demo(
    compute: Annotated[Compute, Only("seed")],
    report: Reporting,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New directory for the three checkpoints and demo.json.")
    ] = Path("demo-out"),
) -> None:
    """Cut, heal and measure a small model that comes along.

    SmolLM2-135M-Instruct loses a quarter of its layers.
    """
    from shortstack.study.demo import run

    with report.bars() as progress:
        result = run(output, seed=compute.seed, progress=progress)
    if report.json:
        return console.show_json(result.to_dict())
    show(result)
    report.say("shortstack prune MODEL --drop 25% -o pruned, with a model directory or hub id of yours")
    return None


def show(demo: Demo) -> None:
    """The table, the second plan, and the answers."""
    base = demo.rows[0]
    console.show_table(
        f"SmolLM2-135M-Instruct without layers {show_layers(demo.chosen.removed)}, chosen by measured loss",
        ("", *(row.name for row in demo.rows)),
        [
            ("layers", *(str(row.layers) for row in demo.rows)),
            ("parameters", *(f"{row.parameters / 1e6:.1f} M" for row in demo.rows)),
            ("bytes on disk (bf16)", *(size(row.bytes) for row in demo.rows)),
            ("held-out perplexity", *(number(row.perplexity.value) for row in demo.rows)),
            ("decode, tokens per second", *(f"{row.speed.decode_tokens_per_s:.1f}" for row in demo.rows)),
        ],
    )
    print(
        f"\nPerplexity is of {base.perplexity.tokens:,} tokens. Second plan, the paper's tail cut (layers "
        f"{show_layers(demo.tail.removed)}), before healing: perplexity {number(demo.tail_perplexity.value)} on the "
        "same tokens. On this model the last layers cannot simply go."
    )
    print(f"\nPrompt: {demo.prompt}")
    for row in demo.rows:
        print(f"\n{row.name}:\n  " + row.answer.replace("\n", "\n  "))
    print(
        f"\nThe pruned checkpoint's logits are equal to the source without those layers. {demo.seconds:.0f} s, "
        f"{size(demo.peak_rss_bytes)} of memory at most."
    )
    print(f'{demo.output}/healed opens with AutoModelForCausalLM.from_pretrained("{demo.output}/healed").')
