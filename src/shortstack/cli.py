"""The command line: each verb parses, calls one public function, prints its result, and names the next step.

stdout carries the result (`--json` for machines), stderr the progress. Exit codes: 0 done, 2 bad usage or input, 1 failure.
Nothing heavy is imported before a verb runs: `shortstack --help` knows no torch.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shortstack import console, plots, tables
from shortstack.errors import DataError, InputError, ShortstackError
from shortstack.healing_options import Course, Going, InTurns, Learned, Loss, Part, filled
from shortstack.jsonfiles import check_new
from shortstack.methods import METHODS, method_named
from shortstack.metrics import METRICS, metrics_named
from shortstack.options import (
    MODEL,
    TEXT,
    Calibration,
    Choice,
    Compute,
    Device,
    Dtype,
    Model,
    Out,
    RepairSamples,
    Report,
    Seed,
    Source,
    check_unused,
    grouped,
    parse_batch_sizes,
)
from shortstack.planning import Plan, Sizes, show_layers
from shortstack.scores import Scores

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint

app = typer.Typer(
    name="shortstack",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

REPAIR_SAMPLES = 256
METRIC_NAMES = ", ".join(METRICS)


class Listing(StrEnum):
    metrics = "metrics"
    methods = "methods"
    recipes = "recipes"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"shortstack {version('shortstack')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result."""


@app.command()
@grouped
def score(
    model: Model,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    metric: Annotated[str, typer.Option(help=f"Comma-separated: {METRIC_NAMES}, or all.")] = "ppl",
    window: Annotated[
        int | None, typer.Option(min=1, help="Also score every block of so many layers.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the scores to this JSON file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the orders and how far they agree: an .svg, .png or .pdf file.")
    ] = None,
) -> None:
    """Score every layer by one or more metrics in one walk; low = remove first."""
    if output:
        check_new(output)
    if plot:
        plots.check_picture(plot)
        _check_orders(metric)
    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        scores = calibration.score(checkpoint, metric.split(","), compute, progress, window=window)
    if output:
        scores.save(output)
    if plot:
        plots.score_map(scores, plot, drop="25%")
    if report.json:
        return console.show_json(scores.to_dict())
    tables.show_scores(scores)
    again, drop = [] if output else source.words, "25%" if scores.scores else scores.window
    report.next_step("plan", output or model, "--metric", scores.default_metric, "--drop", drop, *again)
    return None


def _check_orders(metric: str) -> None:
    """Refuse to draw orders of layers where no metric has one."""
    if not any(each.singles for each in metrics_named(name.strip() for name in metric.split(","))):
        raise InputError(
            "--plot", expected="a metric that scores single layers", found=metric, fix="add one, such as ppl"
        )


@app.command()
@grouped
def sweep(
    model: Model,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    max_loss: Annotated[
        float | None,
        typer.Option(help="Say how many layers can go up to this loss, in nats. Default: 1.5 times the perplexity."),
    ] = None,
    task: Annotated[
        Path | None, typer.Option(help="Multiple choice, answered at every depth: .jsonl of context, choices, answer.")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Also refit the last kept layer of each depth; measure on held-out windows."),
    ] = False,
    repair_samples: RepairSamples = REPAIR_SAMPLES,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve: an .svg, .png or .pdf file.")] = None,
) -> None:
    """Measure the model without its last layers, at every depth, in one walk."""
    if repair:
        _check_repair_samples(calibration)
    if plot:
        plots.check_picture(plot)
    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        found = calibration.sweep(
            checkpoint,
            compute,
            progress,
            max_loss=max_loss,
            task=task,
            repair_samples=repair_samples if repair else None,
        )
    if plot:
        depths = [{name: value for name, value in asdict(depth).items() if value is not None} for depth in found.depths]
        plots.depth_curve(depths, plot, title=f"{model}, cut at every depth", knee=found.knee)
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_sweep(model, found)
    if found.removable:
        report.next_step(
            "prune", model, "--metric", "reverse", "--drop", found.removable, "-o", "pruned", *source.words
        )
    else:
        report.next_step("score", model, "--metric", "all", "-o", "scores.json", *source.words)
    return None


@app.command(name="plan")
@grouped
def plan_verb(
    model_or_scores: Annotated[str, typer.Argument(help=f"A scores.json, or a model. {MODEL}", show_default=False)],
    choice: Choice,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan to this JSON file.")] = None,
) -> None:
    """Choose the layers to remove, from scores or from a model (which is scored first when the metric needs it)."""
    if output:
        check_new(output)
    choice.check()
    if _is_scores(model_or_scores):
        if choice.measures:
            raise InputError(
                model_or_scores,
                expected="a model, to measure shorter forms of it",
                found="scores of the whole model",
                fix="name the model instead of the scores",
            )
        check_unused(model_or_scores, calibration, compute, source)
        scores = Scores.from_dict(_read_json(Path(model_or_scores)), where=model_or_scores)
        chosen = choice.plan(scores, compute.seed)
        chosen = chosen.sized(Sizes.from_dict(scores.model, where=model_or_scores))
        model = str(scores.model.get("source", "MODEL"))
    else:
        model = model_or_scores
        if choice.layers is not None:
            check_unused("--layers", calibration, compute)
        with report.bars() as progress:
            checkpoint = source.open(model, progress)
            chosen, _ = choice.plan_for(checkpoint, calibration, compute, progress)
            chosen = chosen.sized(checkpoint.sizes)
    if output:
        chosen.save(output)
    if report.json:
        return console.show_json(chosen.to_dict())
    tables.show_plan(chosen)
    how = ("--plan", output) if output else ("--layers", show_layers(chosen.removed).replace(" ", ""))
    report.next_step("prune", model, *how, *source.words, "-o", "pruned")
    return None


@app.command()
@grouped
def prune(
    model: Model,
    output: Out,
    choice: Choice,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="A plan.json; instead of the options that choose layers.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Refit kept layers in closed form, so that the cut costs less.")
    ] = False,
    repair_samples: RepairSamples = REPAIR_SAMPLES,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Fill shards up to this, e.g. 5GB. Default: follow the source.", show_default=False),
    ] = None,
) -> None:
    """Write the model without some layers, by copying byte ranges; the result loads with plain transformers."""
    shard_bytes = _parse_size(max_shard_size)
    choice.check(planned=plan_file is not None)
    if not repair and (plan_file or choice.layers is not None):
        check_unused("--plan" if plan_file else "--layers", calibration, compute)
    planned = Plan.from_dict(_read_json(plan_file), where=plan_file) if plan_file else None

    from shortstack.pruning import fits
    from shortstack.pruning import prune as prune_checkpoint

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        fits(output, checkpoint, planned or choice.like(checkpoint))
        chosen, scores = (planned, None) if planned else choice.plan_for(checkpoint, calibration, compute, progress)
        repaired = calibration.repair(checkpoint, chosen, compute, progress, repair_samples) if repair else None
        prune_checkpoint(
            checkpoint,
            chosen,
            output,
            max_shard_bytes=shard_bytes,
            scores=scores.to_dict() if scores else None,
            repair=repaired,
            progress=progress,
        )
        chosen = chosen.sized(checkpoint.sizes)
    if report.json:
        told = repaired.to_dict() if repaired else None
        return console.show_json({**chosen.to_dict(), "repair": told, "output": str(output)})
    tables.show_plan(chosen)
    if repaired:
        tables.show_repair(repaired)
    report.next_step("verify", output, "--against", model, *source.words)
    return None


@app.command(name="repair")
@grouped
def repair_verb(
    directory: Annotated[str, typer.Argument(help="A checkpoint that shortstack pruned.", show_default=False)],
    source_model: Annotated[str, typer.Option("--source", help="The model it was cut from.", show_default=False)],
    output: Out,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    repair_samples: RepairSamples = REPAIR_SAMPLES,
) -> None:
    """Refit the kept layers of a cut in closed form: no training, no new parameters."""
    from shortstack.pruning import fits
    from shortstack.pruning import prune as prune_checkpoint
    from shortstack.verification import cut_of

    _check_repair_samples(calibration)
    with report.bars() as progress:
        origin = source.open(source_model, progress)
        chosen = cut_of(replace(source, revision=None).open(directory, progress), origin)
        fits(output, origin, chosen)
        repaired = calibration.repair(origin, chosen, compute, progress, repair_samples)
        prune_checkpoint(origin, chosen, output, repair=repaired, progress=progress)
    if report.json:
        return console.show_json({**repaired.to_dict(), "output": str(output)})
    tables.show_repair(repaired)
    report.next_step("heal", output, "--data", "pydoc", "-o", "healed", *replace(source, revision=None).words)
    return None


def _check_repair_samples(calibration: Calibration) -> None:
    if calibration.samples != Calibration.samples:
        raise InputError("--samples", expected="--repair-samples", found="--samples", fix="write --repair-samples")


@app.command()
@grouped
def verify(
    directory: Annotated[str, typer.Argument(help="A checkpoint shortstack wrote.", show_default=False)],
    source: Source,
    report: Report,
    against: Annotated[
        str | None, typer.Option(help="The model it was made from: compare logits with it, those layers skipped.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.cpu,
) -> None:
    """Check digests, tensors and, with --against, that the logits equal the source's without those layers."""
    if not against:
        check_unused("verify without --against", replace(source, trust_remote_code=False))

    from shortstack.verification import verify as verify_checkpoint

    with report.bars() as progress:
        checkpoint = replace(source, revision=None).open(
            directory, progress
        )  # --revision is of the model it is against
        origin = source.open(against, progress) if against else None
        result = verify_checkpoint(checkpoint, against=origin, device=device.value, progress=progress)
    if report.json:
        console.show_json(result.to_dict())
    else:
        tables.show_verification(directory, result)
    if not result.ok:
        raise typer.Exit(1)
    healed, trust = checkpoint.record["verb"] == "heal", replace(source, revision=None).words
    then = ("evaluate", directory) if healed else ("heal", directory, "--data", "pydoc", "-o", "healed")
    report.next_step(*then, *trust)


@app.command()
@grouped
def heal(
    context: typer.Context,
    directory: Annotated[str, typer.Argument(help="The pruned checkpoint (or any model).", show_default=False)],
    output: Out,
    learned: Learned,
    part: Part,
    loss: Loss,
    course: Course,
    turns: InTurns,
    going: Going,
    source: Source,
    report: Report,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
) -> None:
    """Train a pruned checkpoint; what is frozen is computed once and kept on disk."""
    if going.recipe:
        groups = {"learned": learned, "part": part, "loss": loss, "course": course, "turns": turns}
        found = filled(groups, going.recipe, typed=lambda name: _typed(context, name))
        learned, part, loss, course, turns = (found[name] for name in groups)
    turns.check()
    method_named(part.method)
    if not learned.data:
        raise InputError("--data", expected="text or instructions to learn from", found="none", fix="add --data pydoc")
    if going.plot:
        plots.check_picture(going.plot)
    alone = replace(source, revision=None)  # --revision is of the model that heals
    with report.bars() as progress:
        checkpoint = source.open(directory, progress)
        options: dict[str, Any] = {
            **asdict(learned),
            "method": part.made(),
            "objective": loss.made(),
            "schedule": course.made(),
            "teacher": alone.open(loss.teacher, progress) if loss.teacher else None,
            "device": device.value,
            "progress": progress,
        }
        if going.dry_run:
            return _foretell(checkpoint, options, report)
        from shortstack.healing import Turns, heal_in_turns
        from shortstack.healing import heal as heal_checkpoint

        options |= {"cache": going.cache, "resume": going.resume, "loggers": going.loggers}
        if turns.step and turns.drop:
            how = Turns(turns.drop, turns.step, turns.metric or "ppl")
            result = heal_in_turns(checkpoint, output, how, **options)
        else:
            result = heal_checkpoint(checkpoint, output, **options)
    if not console.first_process():
        return None
    if going.plot:
        plots.loss_curve(result.history, going.plot, title=str(output))
    if report.json:
        console.show_json(result.to_dict())
    else:
        tables.show_healing(result)
    report.next_step("evaluate", output, *alone.words)
    return None


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _foretell(checkpoint: Checkpoint, options: Mapping[str, Any], report: Report) -> None:
    """What healing would take."""
    from shortstack.healing.forecast import forecast
    from shortstack.healing.healer import Task

    found = forecast(Task.of(checkpoint, **options))
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_forecast(found)
    report.say("the same command without --dry-run")
    return None


@app.command()
@grouped
def evaluate(
    model: Model,
    compute: Compute,
    source: Source,
    report: Report,
    perplexity: Annotated[
        str, typer.Option(help=f"Comma-separated texts: {TEXT} Of pydoc only the held-out part is read.")
    ] = "pydoc",
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Windows, drawn by seed. Default: all.", show_default=False)
    ] = None,
) -> None:
    """Measure perplexity on text the model was not calibrated or healed on."""
    from shortstack.evaluation import evaluate as evaluate_checkpoint

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        result = evaluate_checkpoint(
            checkpoint,
            perplexity=perplexity,
            length=length,
            samples=samples,
            seed=compute.seed,
            dtype=compute.dtype.value,
            device=compute.device.value,
            progress=progress,
        )
    if report.json:
        return console.show_json(result.to_dict())
    tables.show_evaluation(f"{model}: {checkpoint.anatomy.layers} layers", result)
    verb = checkpoint.record.get("verb")
    if verb == "heal":
        report.say(f'AutoModelForCausalLM.from_pretrained("{model}"), or any program that reads a checkpoint directory')
    elif verb == "prune":
        report.next_step("heal", model, "--data", "pydoc", "-o", "healed", *source.words)
    else:
        report.next_step("prune", model, "--drop", "25%", "-o", "pruned", *source.words)
    return None


@app.command()
@grouped
def profile(
    directory: Model,
    source: Source,
    report: Report,
    against: Annotated[
        str | None, typer.Option(help="Another model: runs take turns, for ratios of speed.", show_default=False)
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Sequences at once: one number, or several with commas.")] = "1,8",
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of each prompt; MACs are counted over as many.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate after the first.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Runs that count, after one to warm up.")] = 6,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Count only; no weight is loaded.")] = False,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="What to compute in.")] = Dtype.auto,
) -> None:
    """Count parameters, bytes and multiply-accumulates; measure prefill and decode speed and peak memory."""
    sizes = parse_batch_sizes(batch_size)

    from shortstack.profiling import profile as profile_checkpoint
    from shortstack.timing import Load as Generated

    with report.bars() as progress:
        checkpoint = source.open(directory, progress)
        found = profile_checkpoint(
            checkpoint,
            against=replace(source, revision=None).open(against, progress) if against else None,
            batch_sizes=() if no_speed else sizes,
            load=Generated(prompt=prompt, new_tokens=new_tokens),
            repeats=repeats,
            dtype=dtype.value,
            device=device.value,
            progress=progress,
        )
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_profile(found)
    if checkpoint.record:
        report.next_step("evaluate", directory, *source.words)
    else:
        report.next_step("prune", directory, "--drop", "25%", "-o", "pruned", *source.words)
    return None


@app.command()
@grouped
def demo(
    report: Report,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New directory for the two checkpoints and demo.json.")
    ] = Path("demo-out"),
    seed: Seed = 0,
) -> None:
    """SmolLM2-135M-Instruct loses a quarter of its layers, heals and is measured."""
    from shortstack.demo import run, show

    with report.bars() as progress:
        result = run(output, seed=seed, progress=progress)
    if report.json:
        return console.show_json(result.to_dict())
    show(result)
    report.say("shortstack prune MODEL --drop 25% -o pruned, with a model directory or hub id of yours")
    return None


@app.command()
def ls(
    what: Annotated[
        Listing | None, typer.Argument(help="metrics, methods or recipes. Default: all.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List what can be named on the command line."""
    from shortstack.recipe import read_recipe, recipe_names

    listings = {
        Listing.metrics: [asdict(each) for each in METRICS.values()],
        Listing.methods: [asdict(each) for each in METHODS.values()],
        Listing.recipes: [{"name": name, "title": read_recipe(name).title} for name in recipe_names()],
    }
    shown = ("name", "feed", "formula", "trains", "title", "paper")
    wanted = {
        name.value: [{key: value for key, value in row.items() if key in shown} for row in rows]
        for name, rows in listings.items()
        if what in (None, name)
    }
    if as_json:
        return console.show_json(wanted)
    for title, rows in wanted.items():
        console.show_table(title, tuple(rows[0]), [tuple(row.values()) for row in rows])
    return None


def _is_scores(name: str) -> bool:
    """Whether an argument names a scores file rather than a model; .gguf is the one model that is a file."""
    return not os.path.isdir(name) and (name.endswith(".json") or os.path.isfile(name)) and not name.endswith(".gguf")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            path,
            expected="a JSON file written by shortstack",
            found=str(error),
            fix="check the path, or write it again",
        ) from error
    if not isinstance(data, dict):
        raise DataError(path, expected="a JSON object", found=type(data).__name__, fix="write it again")
    return data


def _parse_size(text: str | None) -> int | None:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    if text is None:
        return None
    digits = text.rstrip("KMGIBkmgib")
    unit = text[len(digits) :].upper()
    if not digits.isdecimal() or unit not in units or not int(digits):
        raise InputError(
            "--max-shard-size",
            expected="a size like 5GB or 500MB",
            found=repr(text),
            fix="write a whole number and a unit",
        )
    return int(digits) * units[unit]


def _terminated(number: int, _frame: object) -> NoReturn:
    console.say(f"stopped by {signal.Signals(number).name}")
    raise SystemExit(128 + number)  # leaves through the context managers, so that no half-written output stays


def main() -> None:
    """The `shortstack` command."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminated)
    try:
        app()
    except ShortstackError as error:
        if {"-v", "--verbose"} & {*sys.argv}:
            traceback.print_exc()
        console.fail(error)
        sys.exit(error.exit_code)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        expected, fix = (
            ("room to write", "free some space") if full else ("a file that can be used", "check its permissions")
        )
        found = error.strerror or repr(error)
        console.fail(ShortstackError(error.filename or "the disk", expected=expected, found=found, fix=fix))
        sys.exit(1 if full else 2)
