"""The embedded example: SmolLM2-135M-Instruct with four and with eight layers fewer, as shrink() makes them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortstack.errors import OutputError, parameter
from shortstack.machine.device import Compute
from shortstack.machine.files import check_new, plain, save_json
from shortstack.machine.progress import Progress, silent
from shortstack.study.beside import PROMPTS
from shortstack.study.keeping import mean
from shortstack.study.shrink_dry_run import Foreseen, foresee_each
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.shrinker import Shrunk, shrink_each
from shortstack.study.workers import Launch, local

DROPS = (4, 8)
MINUTES = 6.0  # of both
OPTIONS = ShrinkOptions(probe_items=10)


@dataclass(frozen=True)
class DemoRow:
    """One model of the table. right: the share of small writing tasks; writes: times as fast as the unpruned model."""

    name: str
    layers: int
    parameters: int
    bytes: int
    perplexity: float
    right: float
    right_stderr: float
    writes: float
    answers: tuple[str, ...]
    verdict: str = ""


@dataclass(frozen=True)
class Demo:
    """The result of the demo: the unpruned model and the shorter ones, and what each answers to the prompts.

    left_out: what there was no time for.
    """

    output: Path
    rows: tuple[DemoRow, ...]
    prompts: Sequence[str]
    seconds: float
    left_out: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        return dict(plain(self))


def foresee(output: str | Path = "demo-out", *, minutes: float = MINUTES, seed: int = 0) -> Foreseen:
    """What run() would take; nothing is written.

    Raises:
        ShortstackError: as run(), before it begins.
    """
    output = Path(output)
    check_new(output, make_folders=True)
    return foresee_each("demo", _outs(output), replace(OPTIONS, minutes=minutes), compute=Compute(seed=seed))


def _outs(folder: Path) -> dict[str, Path]:
    """Where each cut goes, by how much goes."""
    return {str(drop): folder / f"minus-{drop}" for drop in DROPS}


def run(
    output: str | Path = "demo-out",
    *,
    minutes: float = MINUTES,
    seed: int = 0,
    launcher: Callable[[], AbstractContextManager[Launch]] = local,
    progress: Progress = silent,
) -> Demo:
    """Make the model shorter by each of DROPS; leaves a checkpoint of each and demo.json in `output`, or nothing.

    Raises:
        OutputError: `output` exists.
        CheckpointError: the demo model is not installed and the hub cannot be reached.
        ShortstackError: as shrink().
    """
    started, output = time.perf_counter(), Path(output)
    parents = _make(output)
    try:
        outs, options = _outs(output), replace(OPTIONS, minutes=minutes)
        made = shrink_each("demo", outs, options, compute=Compute(seed=seed), launcher=launcher, progress=progress)
        named = zip(DROPS, made, strict=True)
        rows = [_row("unpruned", "base", made[0]), *(_row(f"minus {drop}", "healed", each) for drop, each in named)]
        seconds, left_out = round(time.perf_counter() - started, 1), made[0].left_out
        demo = Demo(output, tuple(rows), PROMPTS, seconds, left_out)
        save_json(output / "demo.json", demo.to_dict())
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        with suppress(OSError):  # somebody may use them by now
            for parent in parents:
                parent.rmdir()
        raise
    return demo


def _row(name: str, role: str, shrunk: Shrunk) -> DemoRow:
    """A row from one of the models of a shrink."""
    measured, plan, short = shrunk.steps[f"evaluate_{role}"], shrunk.steps["prune"], role != "base"
    when, layers = ("after", len(plan["kept"])) if short else ("before", plan["layers"])
    (perplexity,) = (each["value"] for each in measured["perplexity"].values())
    writes = shrunk.beside.speed["decode"]["value"] if short and shrunk.beside.speed else 1.0
    answers = tuple(said["shortened" if short else "unpruned"] for said in shrunk.beside.answers)
    sizes = plan["parameters"][when], plan["bytes"][when]
    return DemoRow(
        name, layers, *sizes, perplexity, *mean(measured["probes"]), writes, answers, shrunk.verdict if short else ""
    )


def _make(output: Path) -> list[Path]:
    """Make the directory, which is ours from then on; the parents that had to be made for it, innermost first."""
    made = [parent for parent in output.absolute().parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        output.mkdir()
    except FileExistsError as error:
        raise OutputError(
            output,
            expected="an output that does not exist yet",
            found="it exists",
            fix=f"name another {parameter('output')}, or remove it",
        ) from error
    return made
