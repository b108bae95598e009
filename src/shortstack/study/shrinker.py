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

from shortstack.errors import InputError, ShortstackError, parameter
from shortstack.healing.options import task_of
from shortstack.healing.recipes import Recipe, read_recipe
from shortstack.machine.files import check_new, save_json, whole
from shortstack.machine.formats import number, size
from shortstack.machine.progress import Progress, silent
from shortstack.planning.layer_sets import check_choice, show_layers
from shortstack.report import write_report
from shortstack.runs import Store
from shortstack.runs.store import Folder
from shortstack.study.card import model_card
from shortstack.study.progress import last_line
from shortstack.study.runner import run_study
from shortstack.study.same_study import CHANGED
from shortstack.study.steps import open_model
from shortstack.study.workers import Launch, local

BEST = "best"
# What `best` chooses from: the paper's tail, two cheap metrics, the block that changes the hidden states least, a search.
CANDIDATES = ("reverse", "bi", "ppl", "angular block", "search")


@dataclass(frozen=True)
class Looks:
    """What texts are looked at: to choose layers, and to judge. seed: of everything random."""

    text: str = "pydoc"
    samples: int = 32
    length: int = 128
    perplexity: tuple[str, ...] = ("pydoc",)
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    @property
    def refit(self) -> dict[str, Any]:
        """What repair looks at, as a study has it."""
        return {"text": self.text, "length": self.length}


@dataclass(frozen=True)
class Shrunk:
    """What shrinking found. steps: result by role, as a study has them; candidates: those that `best` chose from."""

    output: Path
    why: str
    candidates: Sequence[Mapping[str, Any]]
    steps: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        candidates = [dict(each) for each in self.candidates]
        return {"output": str(self.output), "why": self.why, "candidates": candidates, "steps": dict(self.steps)}


def shrink(
    model: str,
    out: str | Path,
    *,
    drop: str | None = None,
    recipe: str = BEST,
    data: str | None = None,
    looks: Looks | None = None,
    launcher: Callable[[], AbstractContextManager[Launch]] = local,
    progress: Progress = silent,
) -> Shrunk:
    """Score, plan, prune, repair, heal and evaluate as a recipe has it; the result is the new checkpoint directory `out`.

    drop and data go before the recipe's. The recipe `best` chooses between several plans, each repaired, by the held-out
    loss, and heals the best. What is done lies in `<out>.study` until the end: killed and called again, it goes on.

    Raises:
        OutputError: `out` exists.
        InputError: the recipe needs data, or is of a kind that shrink does not know; `<out>.study` is of other options.
        ShortstackError: a step failed; the message names its log.
    """
    out, looks, read = Path(out), looks or Looks(), read_recipe(recipe)
    check_new(out)
    work = _Work(model, out.with_name(f"{out.name}.study"), looks, launcher, progress)
    trial = _trial(read, recipe, drop, data)
    check_choice(trial["drop"], None)
    if trial["repair"]:
        trial["repair"] = looks.refit
    candidates: list[dict[str, Any]] = []
    why = f"the recipe {recipe} says how"
    trials = [trial]
    if recipe == BEST:
        choosing = [{**trial, "metric": metric, "repair": looks.refit, "heal": "none"} for metric in CANDIDATES]
        work.run(choosing)
        candidates = work.candidates()
        why, layers = _picked(candidates, looks)
        trials = [*choosing, {**trial, "metric": f"layers {layers}", "repair": looks.refit, "drop": None}]
    work.run(trials)
    found = work.last()
    made = Shrunk(out, why, candidates, found)
    _finish(work, made, found, data=str(trial["heal"]["data"]) if isinstance(trial["heal"], dict) else "")
    return made


def _trial(read: Recipe, name: str, drop: str | None, data: str | None) -> dict[str, Any]:
    """The recipe as a trial of a study.

    Raises:
        InputError: the recipe asks for what a study cannot, or has no data to heal on.
    """
    plan, heal = read.plan.given, {**read.heal.given, **({"data": data} if data else {})}
    for option in ("keep_first", "keep_last"):
        if plan.get(option):
            raise InputError(
                parameter("recipe", name),
                expected=f"no {option}",
                found=str(plan[option]),
                fix="name the layers in the recipe",
            )
    if heal and not heal.get("data"):
        raise InputError(
            parameter("data"),
            expected=f"what the recipe {name} heals on",
            found="none",
            fix=f"add {parameter('data', 'pydoc')}",
        )
    task_of(heal).method.check()
    metric = plan.get("metric", "ppl") + (" block" if plan.get("block") else "")
    if plan.get("search"):
        metric = "search"
    if plan.get("layers"):
        metric = f"layers {plan['layers']}"
    step = heal.pop("step", None)
    return {
        "metric": metric,
        "drop": str(drop or plan.get("drop", "25%")),
        "strategy": f"step {step}" if step else "one-shot",
        "repair": bool(plan.get("repair")),
        "heal": {"name": name, **{key: value for key, value in heal.items() if key != "seed"}} if heal else "none",
    }


def _picked(candidates: Sequence[Mapping[str, Any]], looks: Looks) -> tuple[str, str]:
    """Why a plan was chosen, and its layers as a study writes them.

    Raises:
        ShortstackError: there is none to choose from.
    """
    judged = [each for each in candidates if each["loss"] is not None]
    if not judged:
        raise ShortstackError(
            parameter("recipe", "best"),
            expected="a plan that can be repaired",
            found="; ".join(f"{each['metric']}: {each['error']}" for each in candidates),
            fix="name another recipe: shortstack ls recipes",
        )
    best = min(judged, key=lambda each: each["loss"])
    told = (
        f"Of {len(judged)} plans, each repaired, the one by {best['metric']} has the lowest loss on held-out "
        f"{looks.perplexity[0]}: {best['loss']:.4f} nats per token. It "
        f"was chosen on that text, so there its perplexity is "
        f"a little too good."
    )
    return told, show_layers(best["removed"]).replace(" ", "")


@dataclass(frozen=True)
class _Work:
    """The study behind it, in a folder of its own."""

    model: str
    folder: Path
    looks: Looks
    launcher: Callable[[], AbstractContextManager[Launch]]
    progress: Progress

    def run(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """Run what is not done yet."""
        looks = self.looks
        study = {
            "title": f"shrink {self.model}",
            "models": [self.model],
            "calibration": {"text": looks.text, "samples": looks.samples, "length": looks.length},
            "seeds": [looks.seed],
            "trials": [{key: value for key, value in trial.items() if value is not None} for trial in trials],
            "evaluation": {"perplexity": list(looks.perplexity)},
            "compute": {"device": looks.device, "dtype": looks.dtype},
        }
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "asked.yaml"
        with whole(path) as partial:
            partial.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
        try:
            run_study(path, self.folder, launcher=self.launcher, progress=self.progress)
        except InputError as error:
            if error.fix != CHANGED:
                raise
            fix = f"remove {self.folder}, which is of a run with other options, or name another output with -o"
            raise error.fixed_by(fix) from error

    def _steps(self) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, str]]]:
        """Each trial's settings, results by role, and keys by role."""
        with Store.open(Folder(self.folder), read_only=True) as store:
            results, roles = store.results(), store.trial_steps()
            return [
                (
                    row["settings"],
                    {role: results[key] for role, key in roles.get(row["id"], {}).items() if key in results},
                    roles.get(row["id"], {}),
                )
                for row in store.trials()
            ]

    def candidates(self) -> list[dict[str, Any]]:
        """The plans to choose from, with the loss of each; those that failed, with the error."""
        with Store.open(Folder(self.folder), read_only=True) as store:
            errors = {row["key"]: last_line(row["error"]) for row in store.failures()}
        found = []
        for settings, results, keys in self._steps():
            if settings["heal"] is not None or settings["metric"].startswith("layers "):
                continue
            judged = results.get("evaluate_pruned", {}).get("perplexity", {})
            first = next(iter(judged.values()), None)
            found.append(
                {
                    "metric": settings["metric"],
                    "removed": results.get("plan", {}).get("removed"),
                    "loss": first and first["loss"],
                    "perplexity": first and first["value"],
                    "error": next((errors[key] for key in keys.values() if key in errors), None),
                }
            )
        return found

    def last(self) -> dict[str, Any]:
        """The results of the last trial, by role.

        Raises:
            ShortstackError: a step of it failed.
        """
        _, results, keys = self._steps()[-1]
        with Store.open(Folder(self.folder), read_only=True) as store:
            failure = next((row for row in store.failures() if row["key"] in keys.values()), None)
        if failure:
            raise ShortstackError(
                f"shrink: {failure['kind']}",
                expected="every step to end",
                found=last_line(failure["error"]),
                fix=f"read {Folder(self.folder).log(failure['key'])}; called again, it goes on",
            )
        return results

    def artefact(self) -> Path:
        """The last trial's last checkpoint."""
        keys = self._steps()[-1][2]
        return Folder(self.folder).artefact(keys.get("heal") or keys["prune"])

    def commands(self) -> list[str]:
        """The commands that make the last trial's checkpoint, one after the other."""
        keys = self._steps()[-1][2]
        with Store.open(Folder(self.folder), read_only=True) as store:
            told = dict(store.connection.execute("SELECT key, command FROM steps").fetchall())
        commands = [told[keys[role]] for role in ("score", "plan", "prune", "heal") if role in keys]
        places = {str(Folder(self.folder).artefact(key).absolute()): role for role, key in keys.items()}
        names = {"score": ".", "prune": "pruned", "heal": "healed"}
        for place, role in places.items():
            commands = [command.replace(place, names.get(role, role)) for command in commands]
        return [" ".join(command.splitlines()) for command in commands]


def _finish(work: _Work, made: Shrunk, found: Mapping[str, Any], *, data: str) -> None:
    """Card, report and results beside the weights; then the checkpoint gets its name."""
    folder = work.artefact()
    with whole(folder / "README.md") as partial:
        partial.write_text(model_card(_facts(work, made, found, data)), encoding="utf-8")
    write_report(work.folder, folder / "report.html")
    save_json(folder / "shrink.json", made.to_dict())
    os.rename(folder, made.output)
    shutil.rmtree(work.folder)


def _facts(work: _Work, made: Shrunk, found: Mapping[str, Any], data: str) -> dict[str, Any]:
    """What the card says."""
    heal = found.get("heal")
    plan = found.get("prune") or heal["plan"]  # type: ignore[index]  # one of them is there
    last = open_model(str(work.artefact()))
    judged = {name: found.get(f"evaluate_{role}") for name, role in _ROLES.items()}
    sizes = {
        "unpruned": (plan["layers"], plan["parameters"]["before"], plan["bytes"]["before"]),
        "pruned": (len(plan["kept"]), plan["parameters"]["after"], plan["bytes"]["after"]),
        "healed": (last.anatomy.layers, last.parameters, last.weight_bytes),
    }
    columns = [
        {
            "name": name,
            "layers": sizes[name][0],
            "parameters": f"{sizes[name][1]:,}",
            "bytes": size(sizes[name][2]),
        }
        for name, measured in judged.items()
        if measured
    ]
    return {
        "base": work.model,
        "name": made.output.name,
        "plan": plan,
        "layers": show_layers(plan["removed"]),
        "heal": heal,
        "data": data,
        "columns": columns,
        "perplexities": [
            {
                "text": text,
                "values": [number(each["perplexity"][text]["value"]) for each in judged.values() if each],
            }
            for text in work.looks.perplexity
        ],
        "why": made.why,
        "candidates": [
            {
                "metric": each["metric"],
                "layers": show_layers(each["removed"]) if each["removed"] else "none",
                "perplexity": number(each["perplexity"]) if each["perplexity"] else f"failed: {each['error']}",
            }
            for each in made.candidates
        ],
        "commands": work.commands(),
        "versions": last.record["versions"],
    }


_ROLES = {"unpruned": "base", "pruned": "pruned", "healed": "healed"}
