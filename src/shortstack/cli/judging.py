"""Verbs that measure a model: evaluate."""

from __future__ import annotations

from typing import Annotated

import typer

from shortstack import console, tables
from shortstack.cli.application import verb
from shortstack.cli.options import TEXT, Compute, Model, Report, Source, Writing


@verb()
def evaluate(
    model: Model,
    writing: Writing,
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
    """Measure perplexity on held-out text, and what the model writes."""
    from shortstack.evaluation import evaluate as evaluate_checkpoint

    asked = writing.asked()
    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        result = evaluate_checkpoint(
            checkpoint,
            perplexity=perplexity,
            length=length,
            samples=samples,
            **asked,
            seed=compute.seed,
            dtype=compute.dtype.value,
            device=compute.device.value,
            progress=progress,
        )
    report.warn(result.collapse.warning if result.collapse else None)
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
