"""Files beside the weights of a shrink: model card, report, results, and the recipe that repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.card import CardContent, licence_of, model_card
from shortstack.checkpoint.file_names import CARD, SHRUNK
from shortstack.machine.files import atomic_write, save_json, to_jsonable
from shortstack.machine.formats import show_layers, size
from shortstack.report import Report
from shortstack.report.reporter import write_page
from shortstack.runs import Runs
from shortstack.runs.records import Conclusion, StepRecord, TrialRecord
from shortstack.shrinking.result import ShrinkResult
from shortstack.shrinking.settings import RECIPE

PAGE = "report.html"


def write_card(result: ShrinkResult, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Write card, report, results and recipe into the checkpoint's folder. settings: of the trial, for the report."""
    folder = checkpoint.directory
    card = model_card(result.output.name, checkpoint.record, _card_content(result, checkpoint))
    for name, text in ((CARD, card), (RECIPE, result.recipe)):
        with atomic_write(folder / name) as written:
            written.write_text(text, encoding="utf-8")
    write_page(Report.of(trial_runs(result, settings)), folder / PAGE)
    save_json(folder / SHRUNK, result.to_dict())


def _card_content(result: ShrinkResult, checkpoint: Checkpoint) -> CardContent:
    plan, models = result.plan, ("base", "pruned")
    assert plan.parameters  # noqa: S101  it is sized
    assert plan.bytes  # noqa: S101
    facts = {
        "layers": (str(plan.layers), str(checkpoint.anatomy.layers)),
        "parameters": (f"{plan.parameters.before:,}", f"{checkpoint.parameters:,}"),
        "bytes of weights": (size(plan.bytes.before), size(checkpoint.weight_bytes)),
    }
    return CardContent(
        verdict=result.verdict.decision,
        reasons=result.reasons,
        facts={name: dict(zip(models, values, strict=True)) for name, values in facts.items()},
        measured={"base": result.base.to_dict(), "pruned": result.pruned.to_dict()},
        answers=result.answers,
        why=f"Layers {show_layers(plan.removed)} were removed ({plan.strategy}).",
        compared=plan.candidates or {},
        licence=licence_of(checkpoint.directory),
    )


def trial_runs(result: ShrinkResult, settings: Mapping[str, Any]) -> Runs:
    """Return a shrink as the one trial of a report."""
    results = {**result.steps(), **({"speed": to_jsonable(result.speed)} if result.speed.decode else {})}
    steps = {role: StepRecord(role, role.partition("_")[0], "done", result=done) for role, done in results.items()}
    name = result.output.name
    trial = TrialRecord(name, 1, settings, "done", steps)
    conclusion = Conclusion(result.verdict.decision, result.reasons, tuple(result.answers), result.command)
    return Runs(name, f"shrink {settings['model']}", (trial,), {step.key: step for step in steps.values()}, conclusion)
