"""prune: write the model without some layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import CALIBRATION, Model, Repairing, Session, check_unused, flat
from shortstack.cli.plan import WHICH, say_moved
from shortstack.cli.repair import refitted, said_of
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.machine.files import scratch_beside
from shortstack.machine.formats import show_layers
from shortstack.machine.memory import Requirements
from shortstack.machine.options import option
from shortstack.planning import Choice, Chosen, Plan, choose

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.machine.progress import Progress
    from shortstack.repairing import Repair

Planned = Callable[[int], Plan | None]  # the plan for a model of so many layers, where there is one


@dataclass(frozen=True)
class PruneOptions(Repairing):
    """A plan that is made already, and what is refitted."""

    plan: Path | None = option(
        None, help="A plan.json, or a mergekit .yaml with slices; replaces the options that choose layers."
    )

    def read(self) -> Planned:
        if self.plan is None:
            return lambda _layers: None
        path = self.plan
        if path.suffix in (".yaml", ".yml"):
            from shortstack.planning.mergekit import plan_of_kept, read_mergekit

            kept = read_mergekit(path)
            return lambda layers: plan_of_kept(kept, layers, where=path)
        read = Plan.load(path)
        return lambda _layers: read


@dataclass(frozen=True)
class _Cut:
    """A cut as typed: how layers are chosen, what is refitted, and where the model is written."""

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

    def planned(self, checkpoint: Checkpoint, of_depth: Planned) -> Plan | None:
        named = self.choice.layers is not None
        return choose(checkpoint.depth, self.choice).plan if named else of_depth(checkpoint.depth)

    def preview(self, checkpoint: Checkpoint, of_depth: Planned) -> tuple[Plan, list[tuple[str, str]], Requirements]:
        """Return the plan, or one of its size; what would be done, in words; and what that needs.

        All that is refused is refused here.
        """
        from shortstack.planning.chooser import check_choice
        from shortstack.pruning.pruner import check_cut, check_fits, requirements
        from shortstack.repairing.repairer import check_repair

        plan, needed, compute = self.planned(checkpoint, of_depth), Requirements(), self.session.compute
        if plan:
            check_cut(self.output, checkpoint, plan, copies=self.copies)
            rows = [("removed", show_layers(plan.removed))]
        else:
            plan, needed = check_choice(checkpoint, self.choice, self.text, compute)
            check_fits(self.output, checkpoint, plan, copies=self.copies)
            rows = [("removed", f"{len(plan.removed)} of {plan.layers} layers, to be chosen")]
        if self.options.repair:
            windows = self.text.of_all(self.options.repair_samples)
            needed = needed.then(check_repair(checkpoint, windows, compute))
            rows.append(("refitted on", said_of(windows)))
        return plan, rows, needed.then(requirements(checkpoint, plan, copies=self.copies))

    def chosen(self, checkpoint: Checkpoint, of_depth: Planned, progress: Progress) -> Chosen:
        """Return the plan that is made already, or choose one; before that, check that there is room for the output."""
        from shortstack.pruning.pruner import check_cut, check_fits

        planned = self.planned(checkpoint, of_depth)
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
        from shortstack.pruning import prune

        options, repaired = self.options, None
        with scratch_beside(self.output) if options.repair else nullcontext() as scratch:
            if scratch:
                windows, compute = self.text.of_all(options.repair_samples), self.session.compute
                repaired = refitted(checkpoint, chosen.plan, windows, compute, scratch, progress)
            prune(checkpoint, chosen, self.output, repair=repaired, progress=progress)
        return repaired


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
    cut = _Cut(choice, options, text, session, output)
    cut.check()
    of_depth = options.read()
    if output.suffix == ".gguf":
        from shortstack.cli.prune_file import FileCut, preview_file, prune_file

        file = FileCut.of(model, output, choice, of_depth)
        if dry_run:
            return preview_file(file, text, session)
        return prune_file(file, text, session)
    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        if dry_run:
            plan, rows, needed = cut.preview(checkpoint, of_depth)
            return show_dry_run(
                rows, needed, session.report, output=output, data=plan.sized(checkpoint.sizes).to_dict()
            )
        chosen = cut.chosen(checkpoint, of_depth, progress)
        repaired = cut.written(checkpoint, chosen, progress)
        plan = chosen.plan.sized(checkpoint.sizes)
    record = {**plan.to_dict(), "repair": repaired.to_dict() if repaired else None, "output": str(output)}
    session.report.show(record, *filter(None, (plan, repaired)))
    session.report.next_step("verify", output, "--against", model, *session.source.words)
    return None
