"""The embedded example: SmolLM2-135M-Instruct with four and with eight layers fewer, as shrink_each() makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.evaluation import Estimate
from shortstack.machine.device import Compute
from shortstack.machine.files import save_json, to_jsonable
from shortstack.machine.progress import Progress, silent
from shortstack.machine.tables import Column, Table, Tabled
from shortstack.shrinking.line import shrink_each
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.reference import PROMPTS
from shortstack.shrinking.result import Shrunk
from shortstack.shrinking.retention import probes_right

DROPS = (4, 8)
OPTIONS = ShrinkOptions(probe_items=10)


@dataclass(frozen=True)
class DemoRow:
    """One model of the table. right: the share of generation probes; writes: times as fast as the unpruned one, if timed."""

    name: str
    layers: int
    parameters: int
    bytes: int
    perplexity: float
    right: Estimate | None
    writes: float | None
    answers: tuple[str, ...]
    verdict: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Demo(Tabled):
    """The unpruned model and the shorter ones, and what each answers to the prompts. left_out: what there was less of."""

    output: Path
    rows: tuple[DemoRow, ...]
    prompts: Sequence[str]
    seconds: float
    left_out: Sequence[str] = ()

    def table(self) -> Table:
        """Return a table of each model's savings and their cost in quality."""
        rows = [
            (row.name, row.layers, row.parameters, row.bytes, row.writes, row.perplexity, row.right and str(row.right))
            for row in self.rows
        ]
        columns = (
            Column("model", "text"),
            "layers",
            Column("parameters", "parameters"),
            Column("bytes", "bytes"),
            Column("writes", "ratio", "times as fast"),
            Column("perplexity", "perplexity"),
            "probes right",
        )
        caption = "Bytes in bf16; perplexity on held-out text; share of generation probes right."
        return Table.of("SmolLM2-135M-Instruct with fewer layers", columns, rows, caption=caption)

    def to_dict(self) -> dict[str, Any]:
        return dict(to_jsonable(self))


def run(output: Path, *, minutes: float, seed: int = 0, progress: Progress = silent) -> Demo:
    """Make the model shorter by each of DROPS; leaves a checkpoint of each and demo.json in `output`. minutes: for all."""
    outs = {str(drop): output / f"minus-{drop}" for drop in DROPS}
    made = shrink_each("demo", outs, replace(OPTIONS, minutes=minutes), compute=Compute(seed=seed), progress=progress)
    rows = (_unpruned(made[0]), *map(_row, made))
    left_out = [*dict.fromkeys(what for one in made for what in one.left_out)]
    demo = Demo(output, rows, PROMPTS, made[-1].seconds, left_out)
    save_json(output / "demo.json", demo.to_dict())
    return demo


def _unpruned(made: Shrunk) -> DemoRow:
    plan, (text,) = made.plan, made.base.perplexity.values()
    assert plan.parameters  # noqa: S101  it is sized
    assert plan.bytes  # noqa: S101
    said = tuple(row["unpruned"] for row in made.answers if "unpruned" in row)
    sizes = plan.parameters.before, plan.bytes.before
    return DemoRow("unpruned", plan.layers, *sizes, text.value, probes_right(made.base), 1.0, said)


def _row(made: Shrunk) -> DemoRow:
    plan, (text,) = made.plan, made.last.perplexity.values()
    assert plan.parameters  # noqa: S101  it is sized
    assert plan.bytes  # noqa: S101
    said, name = tuple(row["shortened"] for row in made.answers if "shortened" in row), f"minus {len(plan.removed)}"
    writes = made.speed.decode.value if made.speed.decode else None
    sizes = plan.parameters.after, plan.bytes.after
    right = probes_right(made.last)
    return DemoRow(name, len(plan.kept), *sizes, text.value, right, writes, said, made.verdict, made.reasons)
