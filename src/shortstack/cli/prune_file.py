"""prune of a .gguf model to a .gguf file: layers are chosen on its dequantised weights, its own bytes are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shortstack.checkpoint.gguf_file import GgufFile, read_gguf
from shortstack.checkpoint.source import gguf_of
from shortstack.cli.dry_run import show_dry_run
from shortstack.cli.options import Session
from shortstack.cli.plan import say_moved
from shortstack.data import CalibrationText
from shortstack.errors import InputError, PlanError
from shortstack.machine.formats import show_layers
from shortstack.machine.memory import Requirements
from shortstack.machine.progress import Progress
from shortstack.planning import Choice, Chosen, Plan, choose, plan_of
from shortstack.planning.exactness import nearest
from shortstack.pruning.gguf_depth import GgufDepth
from shortstack.pruning.gguf_pruner import check_gguf_output, file_requirements, prune_gguf


@dataclass(frozen=True)
class FileCut:
    """A .gguf model, where its cut goes, and which layers go: planned, or to be chosen."""

    model: str
    file: GgufFile
    depth: GgufDepth
    output: Path
    choice: Choice
    planned: Plan | None

    @classmethod
    def of(cls, model: str, output: Path, choice: Choice, of_depth: Callable[[int], Plan | None]) -> FileCut:
        """Read the file's metadata, and refuse an output that cannot be."""
        source = gguf_of(model)
        if source is None:
            expected = "a directory, unless the model is a .gguf file"
            fix = "check the path, or name a directory; GGUF is cut from GGUF"
            raise InputError("a .gguf file", expected=expected, fix=fix, option="output")
        file = read_gguf(source)
        depth = GgufDepth.of(file)
        choice, planned = choice.sized(file.sizes(depth.layers)), of_depth(depth.layers)
        if choice.layers is not None:
            planned = choose(depth.layers, choice).plan
        if planned:
            planned = plan_of(planned, depth.layers)
        check_gguf_output(file, planned or choice.like(depth.layers), output)
        return cls(model, file, depth, output, choice, planned)

    def chosen(self, text: CalibrationText, session: Session, progress: Progress) -> Chosen:
        """Return the layers that go; where they are yet to be chosen, by the dequantised weights.

        Chosen layers are moved where the file cannot say what a directory can.
        """
        if self.planned:
            return Chosen(self.planned, self.planned)
        checkpoint = session.source.open(self.model, progress)
        chosen = choose(checkpoint, self.choice, text, compute=session.compute, progress=progress)
        layers = self.depth.layers
        plan = nearest(chosen.plan, self.depth.is_exact, allowed=lambda removed: self.choice.allows(layers, removed))
        if plan is None:
            raise PlanError(
                f"none near layers {show_layers(chosen.plan.removed)}",
                expected="a cut near the wanted one that is exact in GGUF",
                fix="name layers of whole periods, such as 8-11",
                where=self.model,
            )
        return chosen._replace(plan=plan)


def prune_file(cut: FileCut, text: CalibrationText, session: Session) -> None:
    """Choose, cut, and show what came out."""
    with session.report.bars() as progress:
        chosen = cut.chosen(text, session, progress)
        say_moved(chosen)
        plan = replace(chosen.plan, parameters=None, bytes=None)
        written = prune_gguf(cut.file.parts[0], plan, cut.output, progress=progress)
        plan = plan.sized(cut.file.sizes(cut.depth.layers))
    session.report.show({**plan.to_dict(), "repair": None, "output": str(written)}, plan)
    session.report.next_step("verify", written, "--against", cut.model)


def preview_file(cut: FileCut, text: CalibrationText, session: Session) -> None:
    """Say what would be done. Where layers are to be chosen the file is dequantised into the cache."""
    plan, needed = cut.planned, Requirements()
    if plan:
        cut.depth.without(plan.kept)
        rows = [("removed", show_layers(plan.removed))]
    else:
        from shortstack.planning.chooser import check_choice

        with session.report.bars() as progress:
            checkpoint = session.source.open(cut.model, progress)
        plan, needed = check_choice(checkpoint, cut.choice, text, session.compute)
        rows = [("removed", f"{len(plan.removed)} of {plan.layers} layers, to be chosen")]
    needed = needed.then(file_requirements(cut.file, plan))
    show_dry_run(rows, needed, session.report, output=cut.output, data=plan.to_dict())
