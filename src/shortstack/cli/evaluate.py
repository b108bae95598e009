"""evaluate: perplexity, tasks and probes of a model, compared with its base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from shortstack.cli.options import RECORDED, Base, CommonOptions, Model, Saved, expand_fields, group, is_quantised
from shortstack.evaluation import EvalConfig

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint


def evaluate(
    model: Model,
    /,
    *,
    base: Base = RECORDED,
    output: Saved = None,
    config: Annotated[EvalConfig, expand_fields(group("Measures"))] = EvalConfig(),
    session: Annotated[CommonOptions, expand_fields(without="stream")] = CommonOptions(),
) -> None:
    """Measure perplexity, tasks and probes, and compare them with the base model.

    $ shortstack evaluate small --tasks piqa,winogrande --probes
    """
    from shortstack.evaluation.evaluator import prepare

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        other = session.open_base(base, checkpoint, progress)
        ready = prepare(checkpoint, config, base=other, compute=session.compute)
        result = ready[0].measure(progress)
    try:
        if other:
            with session.report.bars() as progress:
                result = result.compare_to(ready[1].measure(progress))
    finally:  # what was measured is not lost, whatever becomes of the base model
        if other and result.base is None:
            session.report.warn(f"nothing is compared with {other.source}")
        session.report.result(result, output)
    _next_step(model, checkpoint, session, base)


def _next_step(model: str, checkpoint: Checkpoint, session: CommonOptions, base: str | None) -> None:
    made_by = checkpoint.record.get("verb")
    if made_by == "heal" or (made_by == "prune" and is_quantised(checkpoint)):
        loads = f'{checkpoint.auto_class}.from_pretrained("{model}")'
        session.report.say(f"{loads}, or any program that reads a checkpoint directory")
    elif made_by == "prune":
        session.report.next_heal(model, base, *session.source.command_line)
    else:
        session.report.next_cut(model, checkpoint, *session.source.command_line)
