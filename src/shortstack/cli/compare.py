"""compare: the shorter model beside quantised, narrower and sparser ones of the same size."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import CALIBRATION, Model, Repairing, Saved, Session, check_unused, flat, group
from shortstack.data import CalibrationText
from shortstack.errors import DataError, InputError
from shortstack.evaluation import EvaluationText, Tasks
from shortstack.machine.formats import show_layers, size
from shortstack.machine.options import option
from shortstack.profiling import Timing
from shortstack.scoring import METRICS
from shortstack.scoring.metrics import metric_named

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.comparison import Calibration, EvaluationSpec


@dataclass(frozen=True)
class BaselineText(CalibrationText):
    """The text on which baselines choose their layers, neurons and masks."""

    samples: int | str = option(32, help="Calibration windows per text, of 128 tokens each: a number, or all.")


@dataclass(frozen=True)
class CompareOptions(Repairing):
    memory: str = option("50%", help="Byte budget: a share of the unpruned weights, or a size such as 4GB.")
    metric: str = option("ppl", help=f"How layers are chosen: {', '.join(METRICS)}.")
    healed: str | None = option(None, help="A healed checkpoint to add as a row of its own.")

    def __post_init__(self) -> None:
        super().__post_init__()
        metric_named(self.metric)


def compare(
    model: Model,
    /,
    *,
    options: Annotated[CompareOptions, flat()] = CompareOptions(),
    output: Saved = None,
    dry_run: DryRun = False,
    text: Annotated[BaselineText, flat(CALIBRATION, without="length")] = BaselineText(),
    texts: Annotated[EvaluationText, flat(group("Perplexity", 3), without="samples")] = EvaluationText(),
    tasks: Annotated[Tasks, flat(group("Tasks", 4), without="batch_size|max_length|seed")] = Tasks(),
    timing: Annotated[Timing, flat(group("How speed is measured", 5), without="batch_size")] = Timing(),
    session: Annotated[Session, flat(without="device_map")] = Session(),
) -> None:
    """Compare pruned, quantised and narrowed models at equal bytes.

    $ shortstack compare org/model --memory 50%
    """
    options.check("compare")
    if tasks.tasks is None:
        check_unused("compare without --tasks", replace(tasks, limit=None))  # which counts windows, too
    if not texts.sources:
        raise InputError("none", expected="a text to sort rows by", fix="name one: pydoc", option="perplexity")

    from shortstack.checkpoint.weights import check_unquantised
    from shortstack.comparison import Calibration, EvaluationSpec, judge_tasks
    from shortstack.comparison import compare as compare_models
    from shortstack.comparison.baselines import parse_memory
    from shortstack.data.tokens import JUDGING
    from shortstack.decoder import calibration_tokens
    from shortstack.profiling.speed import Load

    compute, memory = session.compute, options.memory
    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        healed = session.alone.open(options.healed, progress) if options.healed else None
        # refused here, before texts are read or written
        check_unquantised(checkpoint, "to hold in fewer bits", "compare")
        parse_memory(memory, checkpoint.weight_bytes, least=checkpoint.sizes.other_bytes)
        try:
            windows = replace(texts, samples=tasks.limit).read(checkpoint.tokenizer(), compute.seed, at_least=1)
        except DataError as error:
            raise error.but(option="limit" if error.option == "samples" else error.option) from error
        asked = replace(tasks, seed=compute.seed)
        judges = [judge_tasks(asked, checkpoint, compute=compute)] if tasks.tasks else []
        load = Load(prompt=timing.prompt, new_tokens=timing.new_tokens)
        judging = EvaluationSpec(windows, judges, load, timing.repeats)
        read = partial(calibration_tokens, checkpoint, compute=compute, progress=progress, dry_run=dry_run)
        tokens = read(text)
        repair = read(text.of_all(options.repair_samples), at_least=JUDGING) if options.repair else None
        calibration = Calibration(tokens, repair, options.metric, healed)
        if dry_run:
            return _preview(checkpoint, calibration, judging, memory, session)
        result = compare_models(checkpoint, calibration, judging, memory=memory, compute=compute, progress=progress)
    for warning in result.warnings:
        session.report.warn(warning)
    session.report.result(result, output)
    layers = show_layers(result.cut).replace(" ", "")
    which = ("--layers", layers) if layers else ("--drop", "25%")
    session.report.next_prune(model, checkpoint, *which, *session.source.command_line)
    return None


def _preview(
    checkpoint: Checkpoint, calibration: Calibration, judging: EvaluationSpec, memory: str, session: Session
) -> None:
    """Show what would be compared, and the disk and memory for it, but for the memory of choosing, repairing and healing."""
    from shortstack.comparison.comparison import check_comparison, requirements

    budget = check_comparison(checkpoint, calibration, judging, memory)
    needed = requirements(checkpoint, calibration, budget, session.compute)
    repaired, healed = ["repaired"] * bool(calibration.repair), ["healed"] * bool(calibration.healed)
    kinds = ["pruned", *repaired, *healed, "quantised", "narrowed", "masked"]
    rows = [("compared", f"{checkpoint.source}: {', '.join(kinds)}"), ("byte budget", size(budget))]
    rows += [(f"windows of {name}", f"{len(tokens.ids):,}") for name, tokens in judging.texts.items()]
    show_dry_run(rows, needed, session.report, output=Path(tempfile.gettempdir()), data={"budget_bytes": budget})
