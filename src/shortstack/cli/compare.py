"""compare: the shorter model beside quantised, narrower and sparser ones of the same size."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from shortstack.cli import console
from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import CALIBRATION, Model, Repairing, Saved, Session, flat, group
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.evaluation import EvaluationText, Tasks
from shortstack.machine.files import check_new
from shortstack.machine.formats import show_layers, size
from shortstack.machine.options import option
from shortstack.profiling import Timing
from shortstack.scoring import METRICS
from shortstack.scoring.metrics import metric_named

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.comparison import Calibration, EvaluationSpec
    from shortstack.machine.device import Compute
    from shortstack.machine.progress import Progress


@dataclass(frozen=True)
class BaselineText(CalibrationText):
    """The text on which baselines choose their layers, neurons and masks."""

    samples: int | str = option(32, help="Calibration windows of each text, of 128 tokens: a number, or all.")


@dataclass(frozen=True)
class CompareOptions(Repairing):
    memory: str = option("50%", help="Byte budget, as a share of the unpruned weights.")
    metric: str = option("ppl", help=f"How layers are chosen: {', '.join(METRICS)}.")
    heal: str | None = option(None, help="Also heal the pruned model on this data, by the recipe `best`.")
    healed: str | None = option(None, help="A healed checkpoint, for a row of its own.")

    def __post_init__(self) -> None:
        super().__post_init__()
        metric_named(self.metric)


def compare(
    model: Model,
    /,
    *,
    asked: Annotated[CompareOptions, flat()] = CompareOptions(),
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
    asked.check("compare")
    if not texts.sources:
        raise InputError("none", expected="a text to sort rows by", fix="name one: pydoc", option="perplexity")
    if output:
        check_new(output)

    from shortstack.comparison import EvaluationSpec, judge_tasks
    from shortstack.comparison import compare as compare_models
    from shortstack.comparison.baselines import parse_memory
    from shortstack.profiling.speed import Load

    def judging(checkpoint: Checkpoint) -> EvaluationSpec:
        tokenizer = checkpoint.tokenizer()
        windows = replace(texts, samples=tasks.limit).read(tokenizer, session.compute.seed, at_least=1)
        judges = [judge_tasks(replace(tasks, seed=session.compute.seed), checkpoint)] if tasks.tasks else []
        return EvaluationSpec(windows, judges, Load(prompt=timing.prompt, new_tokens=timing.new_tokens), timing.repeats)

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        other = session.alone.open(asked.healed, progress) if asked.healed else None
        parse_memory(asked.memory, checkpoint.weight_bytes, least=checkpoint.sizes.other_bytes)
        judged = judging(checkpoint)  # before calibration text is written, which takes long
        calibration = _calibration(
            checkpoint, asked, text=text, healed=other, dry_run=dry_run, compute=session.compute, progress=progress
        )
        if dry_run:
            return _preview(checkpoint, calibration, judged, asked.memory, session)
        result = compare_models(
            checkpoint, calibration, judged, memory=asked.memory, compute=session.compute, progress=progress
        )
    for warning in result.warnings:
        session.report.warn(warning)
    session.report.result(result.to_dict(), lambda: console.show_result(result), output)
    layers = show_layers(result.cut).replace(" ", "")
    which = ("--layers", layers) if layers else ("--drop", "25%")
    session.report.next_prune(model, checkpoint, *which, *session.source.words)
    return None


def _calibration(
    checkpoint: Checkpoint,
    options: CompareOptions,
    *,
    text: CalibrationText,
    healed: Checkpoint | None,
    dry_run: bool,
    compute: Compute,
    progress: Progress,
) -> Calibration:
    """Return what compare() is given. dry_run: the model writes nothing to be calibrated on."""
    from shortstack.comparison import Calibration, heal_as_recipe
    from shortstack.data.tokens import JUDGING
    from shortstack.decoder import calibration_tokens

    how: dict[str, Any] = {"compute": compute, "progress": progress, "dry_run": dry_run}
    tokens, repair, heal = calibration_tokens(checkpoint, text, **how), None, None
    if options.repair:
        windows = text.of_all(options.repair_samples)
        repair = calibration_tokens(checkpoint, windows, at_least=JUDGING, **how)
    if options.heal:
        heal = heal_as_recipe(options.heal, checkpoint, device=compute.device, progress=progress)
    return Calibration(tokens, repair, options.metric, heal, healed)


def _preview(
    checkpoint: Checkpoint, calibration: Calibration, judging: EvaluationSpec, memory: str, session: Session
) -> None:
    """Show what would be compared, and the disk and memory for it, but for the memory of choosing, repairing and healing."""
    from shortstack.comparison.comparison import check_comparison, requirements

    budget = check_comparison(checkpoint, calibration, judging, memory)
    needed = requirements(checkpoint, calibration, budget, session.compute)
    beside = {"repaired": calibration.repair is not None, "healed": calibration.heal is not None}
    kinds = ["pruned", *(name for name, wanted in beside.items() if wanted), "quantised", "narrowed", "masked"]
    rows = [("compared", f"{checkpoint.source}: {', '.join(kinds)}"), ("in at most", size(budget))]
    rows += [(f"windows of {name}", f"{len(tokens.ids):,}") for name, tokens in judging.texts.items()]
    show_dry_run(rows, needed, session.report, output=Path(tempfile.gettempdir()), data={"budget_bytes": budget})
