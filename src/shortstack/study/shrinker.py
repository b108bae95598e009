"""shrink(): the whole line as a study of one trial; the last checkpoint, its report and its model card in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.card import CARD, Measured, Told, licence_of, model_card
from shortstack.errors import InputError, parameter
from shortstack.evaluation import EvaluationText
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import check_new, plain, remove, rename_new, save_json, whole
from shortstack.machine.formats import show_layers, size
from shortstack.machine.locks import OutputLock
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.planning.plans import REPAIRED_BLOCKS
from shortstack.report import write_report
from shortstack.runs.records import TrialRecord
from shortstack.study.beside import Beside, beside
from shortstack.study.making import Made, Making, Tried, evaluations
from shortstack.study.minutes import Amounts
from shortstack.study.references import expanded, open_model
from shortstack.study.shrink_checks import check_shrink, in_words_of_shrink
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.shrink_study import ShrinkStudy
from shortstack.study.shrink_trial import recipe_trial
from shortstack.study.verdict import verdict
from shortstack.study.whole_progress import WholeProgress
from shortstack.study.workers import Launch, local

SUMMARY = "shrink.json"


@dataclass(frozen=True)
class Shrunk:
    """The result of shrink(). verdict: keep it or not, and the numbers that say so.

    steps: result by role, as a study has them. compared: what the plan was chosen from, by what was found of each: `why`
    says what that is. left_out: what there was no time for, in words. beside: answers of both models, speed, and the
    unpruned model in int8. tried: the cuts that were tried where a share was asked for. planned: the seconds that all of it
    was to take.
    """

    output: Path
    verdict: str
    why: str
    compared: Mapping[str, float]
    steps: Mapping[str, Any]
    left_out: Sequence[str]
    beside: Beside
    tried: Sequence[Tried] = ()
    planned: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        data = dict(plain(self))
        return {**{name: value for name, value in data.items() if name != "beside"}, **data["beside"]}


@typed
def shrink(
    model: Model,
    out: str | Path,
    options: ShrinkOptions | None = None,
    *,
    compute: Compute = AUTO,
    launcher: Callable[[], AbstractContextManager[Launch]] = local,
    progress: Progress = in_notebooks,
) -> Shrunk:
    """Score, plan, prune, repair, heal and evaluate as a recipe has it; the result is the new checkpoint directory `out`.

    The options drop and data go before the recipe's. What is done lies in `<out>.study` until the end:
    killed and called again, it goes on, with other options, too: no step that both have is done twice. All that can be
    known to be wrong is said before anything is written.

    Raises:
        OutputError: `out` exists, lies in the model, another process makes it, or the disk has no room.
        InputError: the recipe needs data, or is of a kind that shrink does not know.
        DataError: data or texts cannot be read, or are too few.
        ShortstackError: a step failed; the message names its log. No cut keeps the share that was asked for.
    """
    options, name = options or ShrinkOptions(), _name_of(model)
    study = _study(name, Path(out), options, compute, recipe_trial(name, options))
    return _shrink({str(study.trial["drop"]): Path(out)}, study, launcher, progress)[0]


@typed
def shrink_each(
    model: Model,
    outs: Mapping[str, Path],
    options: ShrinkOptions | None = None,
    *,
    compute: Compute = AUTO,
    launcher: Callable[[], AbstractContextManager[Launch]] = local,
    progress: Progress = in_notebooks,
) -> list[Shrunk]:
    """Several cuts of one model, which share the minutes and a study: what does not depend on the cut is done once.

    outs: the new directory of each, by how much goes, as options.drop says it.

    Raises:
        InputError: a share to keep is asked for: it decides how much goes.
        ShortstackError: as shrink().
    """
    options, name = options or ShrinkOptions(), _name_of(model)
    if options.share:
        where, expected = parameter("keep", options.keep), "no share to keep where it is said how much goes"
        raise InputError(where, expected=expected, found=", ".join(outs), fix=f"leave {parameter('keep')} out")
    study = _study(name, next(iter(outs.values())), options, compute, recipe_trial(name, options))
    return _shrink(outs, study, launcher, progress)


def _name_of(model: Model) -> str:
    """The name by which the processes of steps open a model."""
    if isinstance(model, str | Path):
        return str(model)
    checkpoint = Checkpoint.of(model)
    at = f"{checkpoint.source}@{checkpoint.revision}" if checkpoint.revision else checkpoint.source
    try:
        same = open_model(at, download=False).directory == checkpoint.directory
    except InputError:
        same = False  # a loaded model is no longer what lies where it came from
    return at if same else str(checkpoint.directory)


def _study(model: str, first: Path, options: ShrinkOptions, compute: Compute, trial: Mapping[str, Any]) -> ShrinkStudy:
    """The study, which lies beside the first output.

    Raises:
        OutputError: that has no name, as the folder where we are.
    """
    if not first.name:
        check_new(first)
    return ShrinkStudy(model, first.with_name(f"{first.name}.study"), options, compute, trial)


def _shrink(
    outs: Mapping[str, Path],
    study: ShrinkStudy,
    launcher: Callable[[], AbstractContextManager[Launch]],
    progress: Progress,
) -> list[Shrunk]:
    """Check, lock, and make each output."""
    told = WholeProgress(progress, 60 * study.options.minutes)
    for out in outs.values():
        _clear_finished(out, study.folder)
    with in_words_of_shrink():
        wanted = check_shrink(study.model, outs, study.options, study.trial, study.compute)
        with ExitStack() as locks:
            for out in outs.values():
                waiting = f"wait for it, watch it (shortstack watch {study.folder})"
                locks.enter_context(OutputLock(out, meanwhile=waiting))
            return _held(outs, study, Making(study, launcher, told), wanted)


def _clear_finished(out: Path, study: Path) -> None:
    """Remove the study of an output that stands: who made it was killed before it could."""
    if study.is_dir() and (out / SUMMARY).is_file():
        with OutputLock(out):
            remove(study)


def _held(outs: Mapping[str, Path], study: ShrinkStudy, making: Making, wanted: Amounts) -> list[Shrunk]:
    """The making, by the one process that holds the outputs."""
    options, told = study.options, making.whole
    made = [making.keeping(options.share, wanted)] if options.share else making.named(list(outs), wanted)
    shorts, unpruned = (
        [open_model(str(study.made(each.trial))) for each in made],
        open_model(str(expanded(study.model))),
    )
    amounts = made[0].reckoned.amounts
    texts = EvaluationText(options.texts, samples=amounts.judged if not amounts.all_judged else None)
    found = beside(shorts, unpruned, texts=texts, compute=study.compute, progress=told.behind)
    together = zip(outs.values(), made, found, strict=True)
    shrunk = [_shrunk(out, options, each, held, wanted) for out, each, held in together]
    told.behind("writing the report", 0, 1)
    for each, one in zip(made, shrunk, strict=True):
        _finish(study, each.trial, one)
    shutil.rmtree(study.folder)
    told.end()
    return shrunk


def _shrunk(out: Path, options: ShrinkOptions, made: Made, found: Beside, wanted: Amounts) -> Shrunk:
    """What is said of the trial that was taken."""
    trial, plan = made.trial, made.trial.result("plan")
    return Shrunk(
        out,
        str(verdict(*evaluations(trial), found)),
        _why(plan, options),
        plan.get("compared") or {},
        {role: step.result for role, step in trial.steps.items()},
        made.reckoned.amounts.left_out(wanted),
        found,
        made.tried,
        made.reckoned.all,
    )


def _why(plan: Mapping[str, Any], options: ShrinkOptions) -> str:
    """Why these layers went; a recipe that heals in turns has no plan of its own."""
    compared = plan.get("compared")
    if not compared:
        return f"The recipe {options.recipe} says how."
    measure = (
        "loss with layers refitted" if plan["strategy"] == REPAIRED_BLOCKS else "KL divergence from the unpruned model"
    )
    return (
        f"Of {len(compared)} cuts that were compared, the one of layers {show_layers(plan['removed'])} has the lowest "
        f"{measure} on held-out windows of {options.text}: {min(compared.values()):.4f} nats per token."
    )


def _finish(study: ShrinkStudy, trial: TrialRecord, shrunk: Shrunk) -> None:
    """Card, report and results beside the weights; then the checkpoint gets its name."""
    folder = study.made(trial)
    last = open_model(str(folder))
    told = Told(
        verdict=shrunk.verdict,
        facts=_sizes(shrunk, last),
        measured=_measured(shrunk),
        answers=shrunk.beside.answers,
        why=shrunk.why,
        compared=shrunk.compared,
        licence=licence_of(folder),
    )
    with whole(folder / CARD) as partial:
        partial.write_text(model_card(shrunk.output.name, last.record, told), encoding="utf-8")
    study.conclude(trial, shrunk.verdict, shrunk.beside.answers, shrunk.beside.tails)
    write_report(study.folder, folder / "report.html")
    save_json(folder / SUMMARY, shrunk.to_dict())
    rename_new(folder, shrunk.output)


def _plan(shrunk: Shrunk) -> Mapping[str, Any]:
    plan: Mapping[str, Any] = shrunk.steps.get("prune") or shrunk.steps["heal"]["plan"]
    return plan


def _measured(shrunk: Shrunk) -> list[Measured]:
    """The models that were measured, the unpruned one first."""
    names = {"base": "unpruned", "pruned": "pruned", "healed": "healed"}
    found = ((name, shrunk.steps.get(f"evaluate_{role}")) for role, name in names.items())
    return [Measured(name, each) for name, each in found if each]


def _sizes(shrunk: Shrunk, last: Checkpoint) -> dict[str, dict[str, str]]:
    """Layers, parameters and bytes of each model."""
    plan = _plan(shrunk)
    parameters, nbytes, after = plan["parameters"], plan["bytes"], len(plan["kept"])
    layers = {"unpruned": plan["layers"], "pruned": after, "healed": last.anatomy.layers}
    counts = {"unpruned": parameters["before"], "pruned": parameters["after"], "healed": last.parameters}
    sizes = {"unpruned": nbytes["before"], "pruned": nbytes["after"], "healed": last.weight_bytes}
    return {
        "layers": {name: str(each) for name, each in layers.items()},
        "parameters": {name: f"{each:,}" for name, each in counts.items()},
        "bytes of weights": {name: size(each) for name, each in sizes.items()},
    }
