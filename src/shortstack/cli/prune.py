"""prune: write the model without some layers.

To a .gguf file a .gguf model is cut: layers are chosen on its dequantised weights, its own bytes are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import CALIBRATION, Model, Repairing, Session, check_unused, flat
from shortstack.cli.plan import WHICH, say_moved
from shortstack.data import CalibrationText
from shortstack.errors import InputError, PlanError
from shortstack.machine.formats import show_layers
from shortstack.machine.memory import Requirements
from shortstack.machine.options import option
from shortstack.planning import Choice, Chosen, Plan, choose, plan_of

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.checkpoint.gguf_file import GgufFile
    from shortstack.machine.progress import Progress
    from shortstack.pruning.gguf_depth import GgufDepth
    from shortstack.repairing import Repair

Planned = Callable[[int], Plan | None]  # the plan for a model of so many layers, where there is one


@dataclass(frozen=True)
class PruneOptions(Repairing):
    """A plan that is made already, and what is refitted."""

    plan: Path | None = option(None, help="A plan.json; replaces the options that choose layers.")

    def read(self) -> Planned:
        if self.plan is None:
            return lambda _layers: None
        read = Plan.load(self.plan)
        return lambda _layers: read


@dataclass(frozen=True)
class _Cut:
    """A cut as typed: of which model, how layers are chosen, what is refitted, and where the model is written."""

    model: str
    choice: Choice
    options: PruneOptions
    text: CalibrationText
    session: Session
    output: Path

    def check(self) -> None:
        options, compute = self.options, self.session.compute
        options.check("prune")
        if options.plan:
            check_unused("--plan", self.choice)
        else:
            self.choice.check()
        if options.repair and compute.device_map:
            expected, fix = "weights in one place, to be refitted", "leave it out: a large model is read layer by layer"
            raise InputError("repair as well", expected=expected, fix=fix, option="device_map")
        if options.repair and self.output.suffix == ".gguf":
            expected, fix = "a cut alone where GGUF is written", "write a directory: it is dequantised"
            raise InputError("refitted weights", expected=expected, fix=fix, option="repair")
        if options.plan or self.choice.layers is not None:
            where = "--plan" if options.plan else "--layers"
            check_unused(where, *(() if options.repair else (self.text, compute)))
            check_unused(where, CalibrationText(samples=self.text.samples))

    @property
    def copies(self) -> int:
        """How many checkpoints lie on the disk at most: what is refitted lies beside the output until then."""
        return 2 if self.options.repair else 1

    def planned(self, layers: int, of_depth: Planned) -> Plan | None:
        return of_depth(layers) if self.choice.layers is None else choose(layers, self.choice).plan

    def preview(self, checkpoint: Checkpoint, of_depth: Planned) -> tuple[Plan, list[tuple[str, str]], Requirements]:
        """Return the plan, or one of its size; what would be done, in words; and what that needs.

        All that is refused is refused here.
        """
        from shortstack.pruning.pruner import check_cut, check_fits, requirements
        from shortstack.repairing.repairer import check_repair

        plan, needed = self.planned(checkpoint.depth, of_depth), Requirements()
        if plan:
            check_cut(self.output, checkpoint, plan, copies=self.copies)
            rows = [("removed", show_layers(plan.removed))]
        else:
            plan, needed, rows = self.to_be_chosen(checkpoint)
            check_fits(self.output, checkpoint, plan, copies=self.copies)
        if self.options.repair:
            windows = self.text.of_all(self.options.repair_samples)
            needed = needed.then(check_repair(checkpoint, windows, self.session.compute))
            said = f"{windows.text}, {windows.samples} windows of each text, of {windows.length} tokens"
            rows.append(("refitted on", said))
        return plan, rows, needed.then(requirements(checkpoint, plan, copies=self.copies))

    def to_be_chosen(self, checkpoint: Checkpoint) -> tuple[Plan, Requirements, list[tuple[str, str]]]:
        from shortstack.planning.chooser import check_choice

        plan, needed = check_choice(checkpoint, self.choice, self.text, self.session.compute)
        return plan, needed, [("removed", f"{len(plan.removed)} of {plan.layers} layers, to be chosen")]

    def chosen(self, checkpoint: Checkpoint, of_depth: Planned, progress: Progress) -> Chosen:
        """Return the plan that is made already, or choose one; before that, check that there is room for the output."""
        from shortstack.pruning.pruner import check_cut, check_fits

        planned = self.planned(checkpoint.depth, of_depth)
        if planned:
            if self.options.repair:  # else prune() itself refuses in time what takes none to compute
                check_cut(self.output, checkpoint, planned, copies=self.copies)
            return Chosen(planned, planned)
        like = self.choice.sized(checkpoint.sizes).like(checkpoint.anatomy.layers)
        check_fits(self.output, checkpoint, like, copies=self.copies)
        chosen = choose(checkpoint, self.choice, self.text, compute=self.session.compute, progress=progress)
        say_moved(chosen)
        return chosen

    def written(self, checkpoint: Checkpoint, chosen: Chosen, progress: Progress) -> Repair | None:
        """Cut, and refit what stays where that is asked for; return the repair, if there was one."""
        from shortstack.pruning import prune
        from shortstack.repairing import Repair

        text = self.text.of_all(self.options.repair_samples) if self.options.repair else None
        pruned = prune(checkpoint, chosen, self.output, repair=text, compute=self.session.compute, progress=progress)
        return Repair.from_dict(pruned.record["repair"]) if text else None


def _foreseen(plan: Plan, planned: Plan | None) -> dict[str, Any]:
    """Return a plan for JSON: of one whose layers are yet to be chosen only how many go."""
    unknown = {} if planned else dict.fromkeys(("removed", "kept", "strategy"))
    return {**plan.to_dict(), "remove": len(plan.removed), **unknown}


@dataclass(frozen=True)
class _FileCut:
    """A cut of a .gguf model; planned: the layers that go, unless they are to be chosen."""

    cut: _Cut
    file: GgufFile
    depth: GgufDepth
    planned: Plan | None

    @classmethod
    def of(cls, cut: _Cut, of_depth: Planned) -> _FileCut:
        """Read the file's metadata, and refuse an output that cannot be."""
        from shortstack.checkpoint.gguf_file import read_gguf
        from shortstack.checkpoint.source import gguf_of
        from shortstack.pruning.gguf_depth import GgufDepth
        from shortstack.pruning.gguf_pruner import check_gguf_output

        source = gguf_of(cut.model)
        if source is None:
            expected = "a directory, unless the model is a .gguf file"
            fix = "check the path, or name a directory; GGUF is cut from GGUF"
            raise InputError("a .gguf file", expected=expected, fix=fix, option="output")
        check_unused("prune of a .gguf file", cut.session.source)
        file = read_gguf(source)
        depth = GgufDepth.of(file)
        cut = replace(cut, choice=cut.choice.sized(file.sizes(depth.layers)))
        planned = cut.planned(depth.layers, of_depth)
        if planned:
            planned = plan_of(planned, depth.layers)
        check_gguf_output(file, planned or cut.choice.like(depth.layers), cut.output)
        return cls(cut, file, depth, planned)

    def preview(self) -> None:
        """Say what would be done. Where layers are to be chosen the file is dequantised into the cache."""
        from shortstack.pruning.gguf_pruner import file_requirements

        cut, plan, needed = self.cut, self.planned, Requirements()
        if plan:
            self.depth.without(plan.kept)
            rows = [("removed", show_layers(plan.removed))]
        else:
            with cut.session.report.bars() as progress:
                checkpoint = cut.session.source.open(cut.model, progress)
            plan, needed, rows = cut.to_be_chosen(checkpoint)
        needed = needed.then(file_requirements(self.file, plan))
        show_dry_run(rows, needed, cut.session.report, output=cut.output, data=_foreseen(plan, self.planned))

    def prune(self) -> None:
        from shortstack.pruning import prune_gguf

        cut, report = self.cut, self.cut.session.report
        with report.bars() as progress:
            chosen = self._chosen(progress)
            say_moved(chosen)
            plan = replace(chosen.plan, parameters=None, bytes=None)
            written = prune_gguf(self.file.parts[0], plan, cut.output, progress=progress)
            plan = plan.sized(self.file.sizes(self.depth.layers))
        report.show({**plan.to_dict(), "repair": None, "output": str(written)}, plan)
        report.next_step("verify", written, "--against", cut.model)

    def _chosen(self, progress: Progress) -> Chosen:
        """Return the layers that go; chosen ones are moved where the file cannot say what a directory can."""
        from shortstack.planning.exactness import nearest

        if self.planned:
            return Chosen(self.planned, self.planned)
        cut, layers = self.cut, self.depth.layers
        checkpoint = cut.session.source.open(cut.model, progress)
        chosen = choose(checkpoint, cut.choice, cut.text, compute=cut.session.compute, progress=progress)
        plan = nearest(chosen.plan, self.depth.is_exact, allowed=lambda removed: cut.choice.allows(layers, removed))
        if plan is None:
            raise PlanError(
                f"none near layers {show_layers(chosen.plan.removed)}",
                expected="a cut near the wanted one that is exact in GGUF",
                fix="name layers of whole periods, such as 8-11",
                where=cut.model,
            )
        return chosen._replace(plan=plan)


def prune(
    model: Model,
    /,
    *,
    output: Annotated[
        Path,
        Parameter(alias="-o", help="New directory, or a .gguf file for a .gguf model; never overwritten."),
    ],
    options: Annotated[PruneOptions, flat()] = PruneOptions(),
    dry_run: DryRun = False,
    choice: Annotated[Choice, flat(WHICH, without="fits")] = Choice(),
    text: Annotated[CalibrationText, flat(CALIBRATION)] = CalibrationText(),
    session: Annotated[Session, flat()] = Session(),
) -> None:
    """Write the model without some layers, by copying bytes.

    No tensor is loaded; the result loads with plain transformers. A .gguf model stays GGUF if OUTPUT ends in .gguf.

    $ shortstack prune org/model --strategy repaired-blocks --drop 8 --repair -o out
    """
    cut = _Cut(model, choice, options, text, session, output)
    cut.check()
    of_depth = options.read()
    if output.suffix == ".gguf":
        file = _FileCut.of(cut, of_depth)
        return file.preview() if dry_run else file.prune()
    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        if dry_run:
            plan, rows, needed = cut.preview(checkpoint, of_depth)
            data = _foreseen(plan.sized(checkpoint.sizes), cut.planned(checkpoint.depth, of_depth))
            return show_dry_run(rows, needed, session.report, output=output, data=data)
        chosen = cut.chosen(checkpoint, of_depth, progress)
        repaired = cut.written(checkpoint, chosen, progress)
        plan = chosen.plan.sized(checkpoint.sizes)
    record = {**plan.to_dict(), "repair": repaired.to_dict() if repaired else None, "output": str(output)}
    session.report.show(record, *filter(None, (plan, repaired)))
    session.report.next_step("verify", output, "--against", model, *session.source.command_line)
    return None
