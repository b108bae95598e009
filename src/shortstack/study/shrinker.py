"""shrink(): the whole line as a study of one trial; the last checkpoint, its report and its model card in one folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError, parameter
from shortstack.healing.options import task_of
from shortstack.healing.recipes import read_recipe
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import plain, save_json, whole
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Choice
from shortstack.planning.layer_sets import check_choice, fewest, show_layers
from shortstack.planning.plans import REPAIRED_BLOCKS
from shortstack.report import write_report
from shortstack.runs.records import TrialRecord
from shortstack.study.card import model_card
from shortstack.study.references import expanded, open_model
from shortstack.study.shrink_checks import check_shrink
from shortstack.study.shrink_options import ShrinkOptions
from shortstack.study.shrink_study import ShrinkStudy
from shortstack.study.trial import ONE_SHOT
from shortstack.study.verdict import verdict
from shortstack.study.workers import Launch, local

PROMPTS = (
    "What is the capital of France, and what is the city known for?",
    "Write two sentences about why people keep gardens.",
)


@dataclass(frozen=True)
class Shrunk:
    """The result of shrink(). verdict: keep it or not, and the numbers that say so.

    steps: result by role, as a study has them. compared: what the plan was chosen from, by what was found of each: `why`
    says what that is. left_out: what there was no time for, in words. answers: a prompt, and what each model says.
    """

    output: Path
    verdict: str
    why: str
    compared: Mapping[str, float]
    steps: Mapping[str, Any]
    left_out: Sequence[str] = ()
    answers: Sequence[Mapping[str, str]] = ()

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

    The options drop and data go before the recipe's. What is done lies in `<out>.study` until the end:
    killed and called again, it goes on, with other options, too: no step that both have is done twice. All that can be
    known to be wrong is said before anything is written.

    Raises:
        OutputError: `out` exists, lies in the model, or the disk has no room.
        InputError: the recipe needs data, or is of a kind that shrink does not know.
        DataError: data or texts cannot be read, or are too few.
        ShortstackError: a step failed; the message names its log.
    """
    out, options = Path(out), options or ShrinkOptions()
    trial = _trial(model, options)
    wanted = check_shrink(model, out, options, trial)
    study = ShrinkStudy(model, out.with_name(f"{out.name}.study"), options, compute, trial)
    amounts = study.amounts(wanted, progress)
    study.run(amounts, launcher, progress)
    last = study.last()
    plan, steps = last.result("plan"), {role: step.result for role, step in last.steps.items()}
    found = str(verdict(steps["evaluate_base"], steps["evaluate_healed" if "heal" in steps else "evaluate_pruned"]))
    models = {"unpruned": open_model(str(expanded(model))), "shortened": open_model(str(study.made(last)))}
    answers, compared = _answers(models, compute), plan.get("compared") or {}
    shrunk = Shrunk(out, found, _why(plan, options), compared, steps, amounts.left_out(wanted), answers)
    data = trial["heal"]["data"] if isinstance(trial["heal"], dict) else ""
    _finish(study, last, shrunk, data=str(data))
    return shrunk


def _trial(model: str, options: ShrinkOptions) -> dict[str, Any]:
    """The recipe as a trial of a study.

    Raises:
        InputError: the recipe asks for what a study cannot, or has no data to heal on.
        PlanError: nobody can tell how much goes.
    """
    recipe = read_recipe(options.recipe)
    plan, heal = recipe.plan.given, {**recipe.heal.given, **({"data": options.data} if options.data else {})}
    drop = _drop(model, options, plan.get("drop", "25%"))
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
        "repair": bool(plan.get("repair")),
        "heal": {"name": options.recipe, **heal} if heal else "none",
    }


def _drop(model: str, options: ShrinkOptions, usual: Any) -> str:
    """How much goes, as a study says it: where a size was asked for, as many layers as leave it whichever go."""
    if options.params is None and options.memory is None:
        check_choice(options.drop or usual, None)
        return str(options.drop or usual)
    choice = Choice(drop=options.drop, params=options.params, memory=options.memory)
    choice.check()
    sizes = open_model(str(expanded(model))).sizes
    light_first = sorted(range(len(sizes.layer_bytes)), key=sizes.layer_bytes.__getitem__)
    fits = choice.sized(sizes).fits
    assert fits  # noqa: S101  it is sized
    return str(len(fewest(light_first, len(light_first), fits)))


def _metric(plan: Mapping[str, Any]) -> str:
    """How a recipe's plan chooses layers, in the words of a study."""
    if plan.get("layers"):
        return f"layers {plan['layers']}"
    if plan.get("search"):
        return "search"
    if plan.get("strategy"):
        return f"{plan.get('metric', '')} {plan['strategy']}".strip()
    return f"{plan.get('metric', 'ppl')}{' block' if plan.get('block') else ''}"


def _why(plan: Mapping[str, Any], options: ShrinkOptions) -> str:
    """Why these layers went; a recipe that heals in turns has no plan of its own."""
    compared = plan.get("compared")
    if not compared:
        return f"The recipe {options.recipe} says how."
    measure = "loss once repaired" if plan["strategy"] == REPAIRED_BLOCKS else "KL divergence from the unpruned model"
    return (
        f"Of {len(compared)} cuts that were compared, the one of layers {show_layers(plan['removed'])} has the lowest "
        f"{measure} on held-out windows of {options.text}: {min(compared.values()):.4f} nats per token."
    )


def _finish(study: ShrinkStudy, trial: TrialRecord, shrunk: Shrunk, *, data: str) -> None:
    """Card, report and results beside the weights; then the checkpoint gets its name."""
    folder = study.made(trial)
    last = open_model(str(folder))
    facts = {
        "base": study.model,
        "name": shrunk.output.name,
        "plan": _plan(shrunk),
        "heal": shrunk.steps.get("heal"),
        "data": data,
        "models": _models(shrunk, last),
        "texts": study.options.texts,
        "verdict": shrunk.verdict,
        "answers": shrunk.answers,
        "why": shrunk.why,
        "compared": shrunk.compared,
        "commands": study.commands(trial),
        "versions": last.record["versions"],
    }
    with whole(folder / "README.md") as partial:
        partial.write_text(model_card(facts), encoding="utf-8")
    write_report(study.folder, folder / "report.html")
    save_json(folder / "shrink.json", shrunk.to_dict())
    os.rename(folder, shrunk.output)
    shutil.rmtree(study.folder)


def _answers(models: Mapping[str, Checkpoint], compute: Compute) -> list[dict[str, str]]:
    """What each model answers to PROMPTS, one model in memory at a time."""
    from shortstack.decoder import Decoder
    from shortstack.decoder.wrapping import arithmetic
    from shortstack.machine.device import pick_device
    from shortstack.profiling.profiler import answer

    answers = [{"prompt": prompt} for prompt in PROMPTS]
    device = pick_device(compute.device)
    for name, checkpoint in models.items():
        decoder = Decoder.load(checkpoint, dtype=arithmetic(compute.dtype, checkpoint, device), device=device)
        for said in answers:
            said[name] = answer(decoder.model, checkpoint.tokenizer(), said["prompt"])
    return answers


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
