"""shrink(): the whole line as a study of one trial; the last checkpoint, its report and its model card in one folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError, ShortstackError, parameter
from shortstack.healing.options import task_of
from shortstack.healing.recipes import read_recipe
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import check_new, plain, save_json, whole
from shortstack.machine.progress import Progress, silent
from shortstack.planning.layer_sets import check_choice, show_layers
from shortstack.report import write_report
from shortstack.runs import records
from shortstack.runs.records import StepRecord, TrialRecord
from shortstack.runs.store import Folder
from shortstack.study.card import model_card
from shortstack.study.progress import last_line
from shortstack.study.references import open_model
from shortstack.study.runner import run_study
from shortstack.study.same_study import OtherStudyError
from shortstack.study.shrink_options import BEST, ShrinkOptions
from shortstack.study.trial import ONE_SHOT
from shortstack.study.workers import Launch, local

MAKING = ("score", "plan", "prune", "heal")  # the roles of the steps that make a checkpoint
# What `best` chooses from: the paper's tail, two cheap metrics, the block that changes the hidden states least, a
# search, and one or two blocks by what they cost once repaired.
CANDIDATES = ("reverse", "bi", "ppl", "angular block", "search", "repaired-blocks")


@dataclass(frozen=True)
class Shrunk:
    """The result of shrink(). steps: result by role, as a study has them; candidates: those that `best` chose from."""

    output: Path
    why: str
    candidates: Sequence[Mapping[str, Any]]
    steps: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(plain(self))


def shrink(
    model: str,
    out: str | Path,
    options: ShrinkOptions | None = None,
    *,
    compute: Compute = AUTO,
    launcher: Callable[[], AbstractContextManager[Launch]] = local,
    progress: Progress = silent,
) -> Shrunk:
    """Score, plan, prune, repair, heal and evaluate as a recipe has it; the result is the new checkpoint directory `out`.

    The options drop and data go before the recipe's. The recipe `best` chooses between several plans, each repaired, by the
    loss on held-out windows of the calibration text, and heals the best. What is done lies in `<out>.study` until the end:
    killed and called again, it goes on.

    Raises:
        OutputError: `out` exists.
        InputError: the recipe needs data, or is of a kind that shrink does not know; `<out>.study` is of other options.
        ShortstackError: a step failed; the message names its log.
    """
    out, options = Path(out), options or ShrinkOptions()
    check_new(out)
    study = _ShrinkStudy(model, out.with_name(f"{out.name}.study"), options, compute)
    trial = _trial(options)
    candidates: list[dict[str, Any]] = []
    trials, why = [trial], f"the recipe {options.recipe} says how"
    if options.recipe == BEST:
        choosing = [{**trial, "metric": metric, "repair": options.repair, "heal": "none"} for metric in CANDIDATES]
        study.run(choosing, launcher, progress)
        candidates = study.candidates()
        why, layers = _best(candidates, options)
        trials = [*choosing, {**trial, "metric": f"layers {layers}", "repair": options.repair, "drop": None}]
    study.run(trials, launcher, progress)
    last = study.last()
    shrunk = Shrunk(out, why, candidates, {role: step.result for role, step in last.steps.items()})
    data = trial["heal"]["data"] if isinstance(trial["heal"], dict) else ""
    _finish(study, last, shrunk, data=str(data))
    return shrunk


def _trial(options: ShrinkOptions) -> dict[str, Any]:
    """The recipe as a trial of a study.

    Raises:
        InputError: the recipe asks for what a study cannot, or has no data to heal on.
        PlanError: nobody can tell how much goes.
    """
    recipe = read_recipe(options.recipe)
    plan, heal = recipe.plan.given, {**recipe.heal.given, **({"data": options.data} if options.data else {})}
    drop = str(options.drop or plan.get("drop", "25%"))
    check_choice(drop, None)
    for name in ("keep_first", "keep_last"):
        if plan.get(name):
            where, fix = parameter("recipe", options.recipe), "name the layers in the recipe"
            raise InputError(where, expected=f"no {name}", found=str(plan[name]), fix=fix)
    if heal and not heal.get("data"):
        expected, fix = f"what the recipe {options.recipe} heals on", f"add {parameter('data', 'pydoc')}"
        raise InputError(parameter("data"), expected=expected, found="none", fix=fix)
    task_of(heal).method.check()
    step = heal.pop("step", None)
    heal.pop("seed", None)  # the study has one for all steps
    return {
        "metric": _metric(plan),
        "drop": drop,
        "strategy": f"step {step}" if step else ONE_SHOT,
        "repair": options.repair if plan.get("repair") else False,
        "heal": {"name": options.recipe, **heal} if heal else "none",
    }


def _metric(plan: Mapping[str, Any]) -> str:
    """How a recipe's plan chooses layers, in the words of a study."""
    if plan.get("layers"):
        return f"layers {plan['layers']}"
    if plan.get("search"):
        return "search"
    if plan.get("strategy"):
        return f"{plan.get('metric', '')} {plan['strategy']}".strip()
    return f"{plan.get('metric', 'ppl')}{' block' if plan.get('block') else ''}"


def _best(candidates: Sequence[Mapping[str, Any]], options: ShrinkOptions) -> tuple[str, str]:
    """Why a plan was chosen, and its layers as a study writes them.

    Raises:
        ShortstackError: there is none to choose from.
    """
    measured = [each for each in candidates if each["loss"] is not None]
    if not measured:
        raise ShortstackError(
            parameter("recipe", BEST),
            expected="a plan that can be repaired",
            found="; ".join(f"{each['metric']}: {each['error']}" for each in candidates),
            fix="name another recipe: shortstack ls recipes",
        )
    best = min(measured, key=lambda each: each["loss"])
    why = (
        f"Of {len(measured)} plans, each repaired, the one by {best['metric']} has the lowest loss on held-out windows of "
        f"{options.text}: {best['loss']:.4f} nats per token."
    )
    return why, show_layers(best["removed"]).replace(" ", "")


@dataclass(frozen=True)
class _ShrinkStudy:
    """The study behind it, in a folder of its own."""

    model: str
    folder: Path
    options: ShrinkOptions
    compute: Compute

    def run(
        self,
        trials: Sequence[Mapping[str, Any]],
        launcher: Callable[[], AbstractContextManager[Launch]],
        progress: Progress,
    ) -> None:
        """Run what is not done yet of these trials."""
        options = self.options
        study = {
            "title": f"shrink {self.model}",
            "models": [self.model],
            "calibration": {"text": options.text, "samples": options.samples, "length": options.length},
            "seeds": [self.compute.seed],
            "trials": [{key: value for key, value in trial.items() if value is not None} for trial in trials],
            "evaluation": {"perplexity": options.texts},
            "compute": {"device": self.compute.device, "dtype": self.compute.dtype},
        }
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "asked.yaml"
        with whole(path) as partial:
            partial.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
        try:
            run_study(path, self.folder, launcher=launcher, progress=progress)
        except OtherStudyError as error:
            place = f"remove {self.folder}, which is of a run with other options, or name another {parameter('output')}"
            raise error.fixed_by(place) from error

    def candidates(self) -> list[dict[str, Any]]:
        """The plans to choose from, with the loss of each; those that failed, with the error."""
        candidates = []
        for trial in records.read(self.folder).trials:
            if trial.settings["heal"] is not None or trial.settings["metric"].startswith("layers "):
                continue
            measured = next(iter(trial.result("evaluate_pruned").get("perplexity", {}).values()), None)
            repaired = trial.result("prune").get("repair")
            candidates.append(
                {
                    "metric": trial.settings["metric"],
                    "removed": trial.result("plan").get("removed"),
                    "loss": measured and repaired and repaired["loss_after"],
                    "perplexity": measured and measured["value"],
                    "error": next((last_line(step.error) for step in trial.steps.values() if step.error), None),
                }
            )
        return candidates

    def last(self) -> TrialRecord:
        """The last trial.

        Raises:
            ShortstackError: a step of it failed.
        """
        trial = records.read(self.folder).trials[-1]
        failed = next((step for step in trial.steps.values() if step.state == "failed"), None)
        if failed:
            raise ShortstackError(
                f"shrink: {failed.kind}",
                expected="every step to end",
                found=last_line(failed.error),
                fix=f"read {Folder(self.folder).log(failed.key)}; called again, it goes on",
            )
        return trial

    def artefact(self, step: StepRecord) -> Path:
        """What a step wrote."""
        return Folder(self.folder).artefact(step.key)

    def commands(self, trial: TrialRecord) -> list[str]:
        """The commands that make a trial's checkpoint, one after the other, each on what the one before names."""
        names = {"score": ".", "prune": "pruned", "heal": "healed"}
        places = {str(self.artefact(step).absolute()): names.get(role, role) for role, step in trial.steps.items()}
        commands = [trial.steps[role].command or "" for role in MAKING if role in trial.steps]
        for place, name in places.items():
            commands = [command.replace(place, name) for command in commands]
        return [" ".join(command.splitlines()) for command in commands]


def _finish(study: _ShrinkStudy, trial: TrialRecord, shrunk: Shrunk, *, data: str) -> None:
    """Card, report and results beside the weights; then the checkpoint gets its name."""
    folder = study.artefact(trial.steps.get("heal") or trial.steps["prune"])
    last = open_model(str(folder))
    facts = {
        "base": study.model,
        "name": shrunk.output.name,
        "plan": _plan(shrunk),
        "heal": shrunk.steps.get("heal"),
        "data": data,
        "models": _models(shrunk, last),
        "texts": study.options.texts,
        "why": shrunk.why,
        "candidates": shrunk.candidates,
        "commands": study.commands(trial),
        "versions": last.record["versions"],
    }
    with whole(folder / "README.md") as partial:
        partial.write_text(model_card(facts), encoding="utf-8")
    write_report(study.folder, folder / "report.html")
    save_json(folder / "shrink.json", shrunk.to_dict())
    os.rename(folder, shrunk.output)
    shutil.rmtree(study.folder)


def _plan(shrunk: Shrunk) -> Mapping[str, Any]:
    plan: Mapping[str, Any] = shrunk.steps.get("prune") or shrunk.steps["heal"]["plan"]
    return plan


def _models(shrunk: Shrunk, last: Checkpoint) -> list[dict[str, Any]]:
    """The models that were measured: the sizes and the perplexity of each."""
    plan = _plan(shrunk)
    sizes = {
        "base": (plan["layers"], plan["parameters"]["before"], plan["bytes"]["before"]),
        "pruned": (len(plan["kept"]), plan["parameters"]["after"], plan["bytes"]["after"]),
        "healed": (last.anatomy.layers, last.parameters, last.weight_bytes),
    }
    return [
        {
            "name": "unpruned" if role == "base" else role,
            **dict(zip(("layers", "parameters", "bytes"), sizes[role], strict=True)),
            "perplexity": shrunk.steps[f"evaluate_{role}"]["perplexity"],
        }
        for role in sizes
        if f"evaluate_{role}" in shrunk.steps
    ]
