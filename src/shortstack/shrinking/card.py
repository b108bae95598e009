"""Files beside the weights of a shrink: model card, the report's page, results, and the recipe that repeats it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.card import CardContent, licence_of, model_card
from shortstack.checkpoint.file_names import CARD, SHRUNK
from shortstack.data.mixture import public_names
from shortstack.machine.files import atomic_write, save_json, to_jsonable
from shortstack.machine.formats import size
from shortstack.report import Report
from shortstack.report.reporter import write_page
from shortstack.runs import Runs
from shortstack.runs.records import Conclusion, StepRecord, TrialRecord
from shortstack.shrinking.result import Shrunk

RECIPE, PAGE = "recipe.yaml", "report.html"
NAMES = {"evaluate_base": "unpruned", "evaluate_pruned": "shortened", "evaluate_healed": "shortened"}


def dress(shrunk: Shrunk, checkpoint: Checkpoint, settings: Mapping[str, Any], *, places: Iterable[str]) -> None:
    """Write all of it into the folder of the checkpoint. settings: of the trial, for the report.

    places: the files that were read, which the card names without their folders.
    """
    folder = checkpoint.directory
    with atomic_write(folder / CARD) as written:
        written.write_text(
            model_card(shrunk.output.name, checkpoint.record, _card_content(shrunk, checkpoint, places)),
            encoding="utf-8",
        )
    with atomic_write(folder / RECIPE) as written:
        written.write_text(shrunk.recipe, encoding="utf-8")
    write_page(Report.of(trial_runs(shrunk, settings)), folder / PAGE)
    save_json(folder / SHRUNK, shrunk.to_dict())


def _card_content(shrunk: Shrunk, checkpoint: Checkpoint, places: Iterable[str]) -> CardContent:
    measured = {NAMES[role]: dict(result) for role, result in shrunk.steps().items() if role in NAMES}
    for result in measured.values():
        texts = result.get("perplexity") or {}
        short = [public_names(text) for text in texts]
        several = len(set(short)) < len(short)  # files of one name are told apart by their places alone
        result["perplexity"] = dict(zip(texts if several else short, texts.values(), strict=True))
    named = partial(_without_places, places={*places})
    return CardContent(
        verdict=named(shrunk.verdict),
        reasons=[*map(named, shrunk.reasons)],
        facts=_sizes(shrunk, checkpoint, [*measured]),
        measured=measured,
        answers=shrunk.answers,
        why=named(shrunk.why),
        compared=shrunk.plan.candidates or {},
        licence=licence_of(checkpoint.directory),
    )


def _without_places(said: str, places: Iterable[str]) -> str:
    for place in sorted(places, key=len, reverse=True):
        said = said.replace(place, public_names(place))
    return said


def _sizes(shrunk: Shrunk, made: Checkpoint, names: list[str]) -> dict[str, dict[str, str]]:
    """Write layers, parameters and bytes of both models."""
    plan = shrunk.plan
    assert plan.parameters  # noqa: S101  it is sized
    assert plan.bytes  # noqa: S101
    return {
        "layers": dict(zip(names, (str(plan.layers), str(made.anatomy.layers)), strict=True)),
        "parameters": dict(zip(names, (f"{plan.parameters.before:,}", f"{made.parameters:,}"), strict=True)),
        "bytes of weights": dict(zip(names, (size(plan.bytes.before), size(made.weight_bytes)), strict=True)),
    }


def trial_runs(shrunk: Shrunk, settings: Mapping[str, Any]) -> Runs:
    """Present a shrink as the one trial that a report draws."""
    results = {**shrunk.steps(), **({"speed": to_jsonable(shrunk.speed)} if shrunk.speed.decode else {})}
    steps = {role: StepRecord(role, role.partition("_")[0], "done", result=result) for role, result in results.items()}
    trial = TrialRecord(shrunk.output.name, 1, settings, "done", steps)
    name, title = shrunk.output.name, f"shrink {settings['model']}"
    by_key = {step.key: step for step in steps.values()}
    conclusion = Conclusion(shrunk.verdict, shrunk.reasons, tuple(shrunk.answers), shrunk.command)
    return Runs(name, title, (trial,), by_key, conclusion)
