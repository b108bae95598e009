"""Verbs that measure a model: evaluate."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortstack import console, tables
from shortstack.cli.application import verb
from shortstack.cli.asking import Asking, Writing
from shortstack.cli.options import TEXT, Compute, Model, Report, Source

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint


@verb()
def evaluate(
    model: Model,
    asking: Asking,
    writing: Writing,
    compute: Compute,
    source: Source,
    report: Report,
    perplexity: Annotated[
        str, typer.Option(help=f"Comma-separated texts: {TEXT} Of pydoc only the held-out part is read. none: no text.")
    ] = "pydoc",
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Windows, drawn by seed. Default: all.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="The model it was made from: measured too, and compared document by document."),
    ] = None,
) -> None:
    """Measure perplexity on held-out text, tasks, and what the model writes."""
    from shortstack.evaluation import compared
    from shortstack.evaluation import evaluate as evaluate_checkpoint

    options: dict[str, Any] = {
        "perplexity": () if perplexity == "none" else perplexity,
        "tasks": asking.asked(compute.seed),
        "length": length,
        "samples": samples,
        **writing.asked(),
        "seed": compute.seed,
        "dtype": compute.dtype.value,
        "device": compute.device.value,
    }
    if against and options["tasks"]:
        options["tasks"].check_paired()
    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        origin = replace(source, revision=None).open(against, progress) if against else None
        result = evaluate_checkpoint(checkpoint, **options, progress=progress)
        if origin:
            options["collapse"] = result.collapse is not None
            report.warn(_other_tokens(checkpoint, origin))
            result = compared(result, evaluate_checkpoint(origin, **options, progress=progress), seed=compute.seed)
    report.warn(result.collapse.warning if result.collapse else None)
    if report.json:
        return console.show_json(result.to_dict())
    tables.show_evaluation(f"{model}: {checkpoint.anatomy.layers} layers", result)
    if checkpoint.made_from and not against:
        console.show(
            f"The unpruned model is not beside it: --against {shlex.quote(checkpoint.made_from)} measures both."
        )
    verb = checkpoint.record.get("verb")
    if verb == "heal":
        report.say(f'AutoModelForCausalLM.from_pretrained("{model}"), or any program that reads a checkpoint directory')
    elif verb == "prune":
        report.next_step("heal", model, "--data", "pydoc", "-o", "healed", *source.words)
    else:
        report.next_step("prune", model, "--drop", "25%", "-o", "pruned", *source.words)
    return None


def _other_tokens(checkpoint: Checkpoint, origin: Checkpoint) -> str | None:
    """What to know of two models that cut text into tokens differently."""
    from shortstack.tokens import same_tokens

    if same_tokens(checkpoint.tokenizer(), origin.tokenizer()):
        return None
    return "the two models have different tokenizers: perplexities per token cannot be compared"
