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
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shortstack import console
from shortstack.errors import DataError, InputError, OutputError, ShortstackError
from shortstack.metrics import METRICS, Scores
from shortstack.planning import Plan, Sizes, plan, show_layers

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.progress import Progress

app = typer.Typer(
    name="shortstack",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

MODEL = "A directory, a hub id, a .gguf file, or `demo` (SmolLM2-135M-Instruct)."
TEXT = "pydoc, a .txt, .json or .jsonl file, or a hub dataset org/name."
DATA = "Text or instructions: pydoc, .txt, .jsonl or .json (text, alpaca, dolly, chat or prompt), or a hub dataset."


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Listing(StrEnum):
    metrics = "metrics"
    methods = "methods"


Model = Annotated[str, typer.Argument(help=MODEL, show_default=False)]
Out = Annotated[Path, typer.Option("--output", "-o", help="New directory; never overwritten.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no next step.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
OnDevice = Annotated[Device, typer.Option(help="Where to compute.")]
InDtype = Annotated[Dtype, typer.Option(help="What to compute in.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the checkpoint's own Python code.")]
Metric = Annotated[
    str | None, typer.Option(help=f"How to choose: {', '.join(METRICS)}. Default ppl.", show_default=False)
]
Drop = Annotated[
    str | None, typer.Option(help="How much to remove: 25% (rounded half up) or a count.", show_default=False)
]
Layers = Annotated[
    str | None, typer.Option(help="Remove exactly these: 22-29,3 (from 0, ranges inclusive).", show_default=False)
]
Block = Annotated[bool, typer.Option("--block", help="Remove one contiguous window.")]
KeepFirst = Annotated[int, typer.Option(min=0, help="Never remove the first n layers.")]
KeepLast = Annotated[int, typer.Option(min=0, help="Never remove the last n layers.")]
Text = Annotated[str, typer.Option(help=f"Calibration text: {TEXT}")]
Samples = Annotated[int, typer.Option(min=1, help="Calibration windows.")]
Length = Annotated[int, typer.Option(min=4, help="Tokens per calibration window.")]


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
def score(
    model: Model,
    metric: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(METRICS)}, or all.")] = "ppl",
    text: Text = "pydoc",
    samples: Samples = 10,
    length: Length = 128,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the scores to this JSON file.")] = None,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
    dtype: InDtype = Dtype.auto,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score every layer by one or more metrics in one walk; low = remove first."""
    _check_file(output)
    with console.bars(quiet=quiet) as progress:
        checkpoint = _open(model, revision, trust_remote_code, progress)
        scores = _score(
            checkpoint,
            [name.strip() for name in metric.split(",")],
            text,
            samples,
            length,
            seed,
            device,
            dtype,
            progress,
        )
    if output:
        scores.save(output)
    if as_json:
        return console.show_json(scores.to_dict())
    _show_scores(scores)
    if not quiet:
        console.next_step(f"shortstack plan {output or model} --metric {scores.default_metric} --drop 25%")
    return None


@app.command(name="plan")
def plan_verb(
    model_or_scores: Annotated[str, typer.Argument(help=f"A scores.json, or a model. {MODEL}", show_default=False)],
    metric: Metric = None,
    drop: Drop = None,
    layers: Layers = None,
    block: Block = False,
    keep_first: KeepFirst = 0,
    keep_last: KeepLast = 0,
    text: Text = "pydoc",
    samples: Samples = 10,
    length: Length = 128,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan to this JSON file.")] = None,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Choose the layers to remove, from scores or from a model (which is scored first when the metric needs it)."""
    _check_file(output)
    options: dict[str, Any] = {
        "drop": drop,
        "layers": layers,
        "block": block,
        "keep_first": keep_first,
        "keep_last": keep_last,
        "seed": seed,
    }
    if model_or_scores.endswith(".json"):
        scores = Scores.from_dict(_read_json(Path(model_or_scores)), where=model_or_scores)
        chosen = plan(scores, metric=metric, **options)
        chosen = chosen.sized(Sizes.from_dict(scores.model, where=model_or_scores))
        model = str(scores.model.get("source", "MODEL"))
    else:
        model = model_or_scores
        with console.bars(quiet=quiet) as progress:
            checkpoint = _open(model, revision, trust_remote_code, progress)
            chosen, _ = _plan(checkpoint, metric, options, (text, samples, length, seed, device), progress)
            chosen = chosen.sized(checkpoint.sizes)
    if output:
        chosen.save(output)
    if as_json:
        return console.show_json(chosen.to_dict())
    _show_plan(chosen)
    if not quiet:
        how = f"--plan {output}" if output else f"--layers {show_layers(chosen.removed).replace(' ', '')}"
        console.next_step(f"shortstack prune {model} {how} -o pruned")
    return None


@app.command()
def prune(
    model: Model,
    output: Out,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="A plan.json; instead of the options below.")] = None,
    metric: Metric = None,
    drop: Drop = None,
    layers: Layers = None,
    block: Block = False,
    keep_first: KeepFirst = 0,
    keep_last: KeepLast = 0,
    text: Text = "pydoc",
    samples: Samples = 10,
    length: Length = 128,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Fill shards up to this, e.g. 5GB. Default: follow the source.", show_default=False),
    ] = None,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the model without some layers, by copying byte ranges; the result loads with plain transformers."""
    from shortstack.pruning import prune as prune_checkpoint

    options: dict[str, Any] = {
        "drop": drop,
        "layers": layers,
        "block": block,
        "keep_first": keep_first,
        "keep_last": keep_last,
        "seed": seed,
    }
    if plan_file and any((drop, layers, metric, block, keep_first, keep_last)):
        raise InputError(
            "--plan", expected="a plan alone", found="options that choose layers beside it", fix="give one or the other"
        )
    shard_bytes = _parse_size(max_shard_size)
    with console.bars(quiet=quiet) as progress:
        checkpoint = _open(model, revision, trust_remote_code, progress)
        _check_output(output, checkpoint)
        scores = None
        if plan_file:
            chosen = Plan.from_dict(_read_json(plan_file), where=plan_file)
        else:
            chosen, scores = _plan(checkpoint, metric, options, (text, samples, length, seed, device), progress)
        prune_checkpoint(
            checkpoint,
            chosen,
            output,
            max_shard_bytes=shard_bytes,
            scores=scores.to_dict() if scores else None,
            progress=progress,
        )
        chosen = chosen.sized(checkpoint.sizes)
    if as_json:
        return console.show_json({**chosen.to_dict(), "output": str(output)})
    _show_plan(chosen)
    if not quiet:
        console.next_step(f"shortstack verify {output} --against {model}")
    return None


@app.command()
def verify(
    directory: Annotated[str, typer.Argument(help="A checkpoint shortstack wrote.", show_default=False)],
    against: Annotated[
        str | None, typer.Option(help="The model it was made from: compare logits with it, those layers skipped.")
    ] = None,
    device: OnDevice = Device.cpu,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check digests, tensors and, with --against, that the logits equal the source's without those layers."""
    from shortstack.verification import verify as verify_checkpoint

    with console.bars(quiet=quiet) as progress:
        checkpoint = _open(directory, None, trust_remote_code, progress)
        source = _open(against, revision, trust_remote_code, progress) if against else None
        result = verify_checkpoint(checkpoint, against=source, device=device.value, progress=progress)
    if as_json:
        console.show_json(result.to_dict())
    else:
        rows = [(name, "ok" if check["ok"] else "FAILED", check["detail"]) for name, check in result.checks.items()]
        console.show_table(f"{directory}", ("check", "result", "detail"), rows)
        if result.ok and not quiet:
            healed = checkpoint.record["verb"] == "heal"
            console.next_step(
                f"shortstack evaluate {directory}" if healed else f"shortstack heal {directory} --data pydoc -o healed"
            )
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def heal(
    directory: Annotated[str, typer.Argument(help="The pruned checkpoint (or any model).", show_default=False)],
    output: Out,
    data: Annotated[str, typer.Option(help=DATA, show_default=False)],
    method: Annotated[str, typer.Option(help="partial: the last layers, the final norm and the head.")] = "partial",
    last: Annotated[int, typer.Option(min=0, help="How many of the last layers train.")] = 3,
    head: Annotated[
        bool | None,
        typer.Option(
            "--head/--no-head", help="Train the head. Default: unless it is tied to the embedding.", show_default=False
        ),
    ] = None,
    untie_head: Annotated[
        bool, typer.Option("--untie-head", help="Make a tied head a matrix of its own and train it; adds parameters.")
    ] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 2,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per optimizer step.")] = 16,
    max_length: Annotated[int, typer.Option(min=4, help="Longest sample, in tokens.")] = 256,
    max_samples: Annotated[
        int | None, typer.Option(min=2, help="Use at most this many samples.", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train part of a pruned checkpoint; what is frozen is computed once and kept on disk."""
    from shortstack.healing import METHODS, Schedule
    from shortstack.healing import heal as heal_checkpoint

    if method not in METHODS:
        raise InputError(
            "--method",
            expected=f"one of {', '.join(METHODS)}",
            found=repr(method),
            fix="`shortstack ls methods` explains each",
        )
    recipe = METHODS[method](last=last, head=head, untie_head=untie_head)
    schedule = Schedule(epochs=epochs, lr=lr, batch_size=batch_size, micro_batch_size=min(batch_size, 16), seed=seed)
    with console.bars(quiet=quiet) as progress:
        checkpoint = _open(directory, None, trust_remote_code, progress)
        result = heal_checkpoint(
            checkpoint,
            output,
            data=data,
            method=recipe,
            schedule=schedule,
            max_length=max_length,
            max_samples=max_samples,
            device=device.value,
            progress=progress,
        )
    if as_json:
        return console.show_json(result.to_dict())
    found = result.to_dict()
    loss = found["loss"]
    rows = [
        ("trained parameters", f"{found['trainable_parameters']:,}"),
        ("optimizer steps", str(found["steps"])),
        (
            "training loss, first to last",
            f"{loss['first']:.4f} to {loss['last']:.4f}" if loss["first"] is not None else "no entry",
        ),
        ("held-out loss, before to after", f"{loss['held_out_before']:.4f} to {loss['held_out']:.4f}"),
        ("seconds", f"{found['seconds']:.0f}"),
        ("peak memory", console.size(found["peak_rss_bytes"])),
    ]
    console.show_table(f"healed: {output}", ("", method), rows)
    if not quiet:
        console.next_step(f"shortstack evaluate {output}")
    return None


@app.command()
def evaluate(
    model: Model,
    perplexity: Annotated[
        str, typer.Option(help=f"Comma-separated texts: {TEXT} Of pydoc only the held-out part is read.")
    ] = "pydoc",
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Windows, drawn by seed. Default: all.", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
    dtype: InDtype = Dtype.auto,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity on text the model was not calibrated or healed on."""
    from shortstack.evaluation import evaluate as evaluate_checkpoint

    with console.bars(quiet=quiet) as progress:
        checkpoint = _open(model, revision, trust_remote_code, progress)
        result = evaluate_checkpoint(
            checkpoint,
            perplexity=[name.strip() for name in perplexity.split(",")],
            length=length,
            samples=samples,
            seed=seed,
            dtype=dtype.value,
            device=device.value,
            progress=progress,
        )
    if as_json:
        return console.show_json(result.to_dict())
    rows = [
        (
            name,
            console.number(found.value),
            f"{found.tokens:,}",
            f"{found.loss:.4f} +- {found.loss_stderr:.4f}",
            "yes" if found.windows["bos"] else "no",
            found.dtype,
        )
        for name, found in result.perplexity.items()
    ]
    console.show_table(
        f"{model}: {checkpoint.anatomy.layers} layers",
        ("text", "perplexity", "tokens", "loss +- s.e.", "BOS", "computed in"),
        rows,
    )
    if not quiet:
        console.next_step(_after_evaluating(model, checkpoint.record.get("verb")))
    return None


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New directory for the two checkpoints and demo.json.")
    ] = Path("demo-out"),
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """SmolLM2-135M-Instruct loses a quarter of its layers, heals and is measured."""
    from shortstack.demo import run, show

    with console.bars(quiet=quiet) as progress:
        result = run(output, seed=seed, progress=progress)
    if as_json:
        console.show_json(result.to_dict())
    else:
        show(result)


@app.command()
def ls(
    what: Annotated[Listing, typer.Argument(help="metrics or methods.", show_default=False)], as_json: AsJson = False
) -> None:
    """List what can be named on the command line."""
    if what is Listing.metrics:
        columns: tuple[str, ...] = ("metric", "looks at", "formula (low = remove first)", "source")
        rows: list[tuple[str, ...]] = [
            (metric.name, metric.feed, metric.formula, metric.paper) for metric in METRICS.values()
        ]
    else:
        columns = ("method", "trains", "source")
        rows = [
            (
                "partial",
                "the last k layers, the final norm, and the head unless it is tied",
                "arXiv 2411.15558, section 4.2",
            )
        ]
    if as_json:
        console.show_json({what.value: [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        console.show_table(what.value, columns, rows)


def _after_evaluating(model: str, verb: str | None) -> str:
    if verb is None:
        return f"shortstack prune {model} --drop 25% -o pruned"
    if verb == "prune":
        return f"shortstack heal {model} --data pydoc -o healed"
    return (
        f'AutoModelForCausalLM.from_pretrained("{model}") in Python, or any program that reads a checkpoint directory'
    )


def _open(model: str, revision: str | None, trust_remote_code: bool, progress: Progress) -> Checkpoint:
    from shortstack.checkpoint import Checkpoint

    return Checkpoint.open(model, revision=revision, trust_remote_code=trust_remote_code, progress=progress)


def _check_output(output: Path, checkpoint: Checkpoint) -> None:
    """Refuse an impossible output before minutes of scoring, not after."""
    from shortstack.writing import CheckpointWriter

    CheckpointWriter(output, source=checkpoint.directory, nbytes=0)


def _check_file(output: Path | None) -> None:
    """Refuse a JSON output that cannot be written, before minutes of scoring."""
    if output and os.path.lexists(output):
        raise OutputError(
            output, expected="an output that does not exist yet", found="it exists", fix="name another, or move it away"
        )
    if output and not os.access(output.absolute().parent, os.W_OK):
        raise OutputError(
            output, expected="a directory that can be written", found=str(output.parent), fix="make it, or name another"
        )


def _score(
    checkpoint: Checkpoint,
    metrics: list[str],
    text: str,
    samples: int,
    length: int,
    seed: int,
    device: Device,
    dtype: Dtype,
    progress: Progress,
) -> Scores:
    from shortstack.metrics import metric_named
    from shortstack.scoring import score as score_checkpoint
    from shortstack.tokens import Tokens

    needs_text = metrics == ["all"] or {metric_named(name).feed for name in metrics} != {"layers"}
    tokens = (
        Tokens.read(text, checkpoint.tokenizer(), samples=samples, length=length, seed=seed) if needs_text else None
    )
    return score_checkpoint(
        checkpoint, tokens, metrics=metrics, dtype=dtype.value, device=device.value, seed=seed, progress=progress
    )


def _plan(
    checkpoint: Checkpoint,
    metric: str | None,
    options: dict[str, Any],
    how: tuple[str, int, int, int, Device],
    progress: Progress,
) -> tuple[Plan, Scores | None]:
    """A plan for a checkpoint, scored first when the metric looks at activations or loss."""
    from shortstack.metrics import metric_named

    layers = checkpoint.anatomy.layers
    plan(layers, metric="reverse", **options)  # what is wrong with the options is said before anything is scored
    name = metric or "ppl"
    if options["layers"] is not None or metric_named(name).feed == "layers":
        return plan(layers, metric=name, **options), None
    text, samples, length, seed, device = how
    scores = _score(checkpoint, [name], text, samples, length, seed, device, Dtype.auto, progress)
    return plan(scores, metric=name, **options), scores


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


def _show_scores(scores: Scores) -> None:
    orders = {name: scores.order(name) for name in scores.scores}
    rows = [
        [
            str(layer),
            *(
                cell
                for name, values in scores.scores.items()
                for cell in (console.number(values[layer]), str(orders[name].index(layer) + 1))
            ),
        ]
        for layer in range(scores.layers)
    ]
    columns = ["layer", *(column for name in scores.scores for column in (name, "removed as"))]
    base = (
        f"; unpruned perplexity {console.number(METRICS['ppl'].function(scores.base_loss))}"
        if scores.base_loss is not None
        else ""
    )
    tokens = (
        scores.tokens
        and f" on {scores.tokens['samples']} x {scores.tokens['length']} tokens of {scores.tokens['source']}"
    )
    console.show_table(f"scores{tokens or ''}{base} (low = remove first)", columns, rows)


def _show_plan(chosen: Plan) -> None:
    def change(before: str, after: str, share: float) -> str:
        return f"{before} to {after} ({share:+.1%})"

    rows = [
        ("removed", show_layers(chosen.removed)),
        ("kept", show_layers(chosen.kept)),
        ("layers", f"{chosen.layers} to {len(chosen.kept)}"),
    ]
    if chosen.parameters and chosen.bytes:
        p, b = chosen.parameters, chosen.bytes
        rows.append(("parameters", change(f"{p.before:,}", f"{p.after:,}", p.after / p.before - 1)))
        rows.append(("bytes", change(console.size(b.before), console.size(b.after), b.after / b.before - 1)))
    console.show_table("plan (layers numbered from 0, ranges inclusive)", ("", chosen.strategy), rows)


def _terminated(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(143)  # leaves through the context managers, so that no half-written output stays


def main() -> None:
    """The `shortstack` command."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except ShortstackError as error:
        console.fail(error)
        sys.exit(error.exit_code)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        expected, fix = (
            ("room to write", "free some space") if full else ("a file that can be used", "check its permissions")
        )
        console.fail(
            ShortstackError(
                error.filename or "the disk",
                expected=expected,
                found=error.strerror or repr(error),
                fix=f"{fix}; nothing was left behind",
            )
        )
        sys.exit(1)
