"""demo: the embedded example, end to end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import MACHINE, SAID, Reporting, flat, going_on
from shortstack.cli.shrink import show_reasons
from shortstack.machine.device import Compute
from shortstack.machine.options import check_options, option

if TYPE_CHECKING:
    from shortstack.shrinking.demo import Demo


@dataclass(frozen=True)
class DemoOptions:
    output: Annotated[Path, Parameter(alias="-o")] = option(
        Path("demo-out"), help="New directory for two checkpoints and demo.json."
    )
    minutes: float = option(10.0, help="Time limit for the whole run.", minimum=0.5)

    def __post_init__(self) -> None:
        check_options(self)


def demo(
    *,
    options: Annotated[DemoOptions, flat()] = DemoOptions(),
    compute: Annotated[Compute, flat(MACHINE, without="device|dtype|stream|device_map")] = Compute(),
    report: Annotated[Reporting, flat(SAID)] = Reporting(),
) -> None:
    """Shorten a small model that comes with the package, and measure it.

    SmolLM2-135M-Instruct loses 4 of its 30 layers, and 8, as `shrink` does it; the minutes are for both.

    $ shortstack demo --minutes 15
    """
    from shortstack.shrinking.demo import run

    with report.bars() as progress, going_on("run the same command again"):
        result = run(options.output, minutes=options.minutes, seed=compute.seed, progress=progress)
    if report.json:
        return console.show_json(result.to_dict())
    show(result)
    report.say("shortstack shrink MODEL --drop 25% -o small, with a model directory or hub id of yours")
    return None


def show(demo: Demo) -> None:
    console.show_result(demo)
    answered = [row for row in demo.rows if row.answers]
    for number_of, prompt in enumerate(demo.prompts if any(row.verdict for row in answered) else ()):
        console.show_answers({"prompt": prompt, **{row.name: row.answers[number_of] for row in answered}})
    for row in demo.rows:
        if row.verdict:
            console.show(f"{row.name}: {row.verdict}")
            show_reasons(row.reasons)
    places = " and ".join(f"{demo.output}/{row.name.replace(' ', '-')}" for row in demo.rows if row.verdict)
    console.show(f"\n{places} open with AutoModelForCausalLM.from_pretrained. {demo.seconds:.0f} s.")
