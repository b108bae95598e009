"""repair: refit the kept layers of a cut."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import CALIBRATION, Calibration, Out, Repairing, Session, flat
from shortstack.data import Text
from shortstack.machine.files import scratch_beside
from shortstack.machine.formats import show_layers


def repair(
    directory: Annotated[str, Parameter(help="A checkpoint that shortstack pruned.")],
    /,
    *,
    source: Annotated[str, Parameter(help="The model it was cut from.")],
    output: Out,
    windows: Annotated[Repairing, flat(without="repair")] = Repairing(),
    dry_run: DryRun = False,
    calibration: Annotated[Calibration, flat(CALIBRATION, without="num_samples")] = Calibration(),
    session: Annotated[Session, flat(without="device_map")] = Session(),
) -> None:
    """Refit the kept layers of a cut in closed form.

    No training, no new parameters.

    $ shortstack repair pruned --source org/model --calibration-data notes.txt -o repaired
    """
    from shortstack.pruning import prune as prune_checkpoint
    from shortstack.pruning.pruner import check_cut, requirements
    from shortstack.pruning.verification import cut_of
    from shortstack.repairing import repair as refit
    from shortstack.repairing.repairer import check_repair

    with session.report.bars() as progress:
        cut = session.alone.open(directory, progress)
        origin = session.open_origin(source, cut, progress)
        chosen = cut_of(cut, origin)
        check_cut(output, origin, chosen, copies=2)
        fitted = calibration.text.of_all(windows.repair_samples)
        if dry_run:
            needed = check_repair(origin, fitted, session.compute).then(requirements(origin, chosen, copies=2))
            rows = [("removed", show_layers(chosen.removed)), ("refitted on", said_of(fitted))]
            return show_dry_run(rows, needed, session.report, output=output, data=chosen.to_dict())
        with scratch_beside(output) as scratch:
            removed = frozenset(chosen.removed)
            repaired = refit(origin, removed, fitted, compute=session.compute, scratch=scratch, progress=progress)
            pruned = prune_checkpoint(origin, chosen, output, repair=repaired, progress=progress)
    session.report.show({**repaired.to_dict(), "output": str(output)}, repaired)
    unpruned = session.beside(source, origin) if session.source.revision else pruned.made_from
    session.report.next_heal(output, unpruned, *session.alone.command_line)
    return None


def said_of(text: Text) -> str:
    return f"{text.name}, {text.samples} windows of each text, of {text.length} tokens"
