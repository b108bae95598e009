"""evaluate: perplexity, tasks, probes and what a model writes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import Model, Saved, Session, check_unused, flat, group, is_quantised
from shortstack.evaluation import EvaluationText, GenerationChecks, Tasks
from shortstack.machine.memory import Requirements

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.evaluation.evaluator import Prepared


def evaluate(
    model: Model,
    /,
    *,
    against: Annotated[
        str | None, Parameter(help="The unpruned model: evaluated as well, and compared document by document.")
    ] = None,
    output: Saved = None,
    dry_run: DryRun = False,
    text: Annotated[EvaluationText, flat(group("Perplexity"))] = EvaluationText(),
    tasks: Annotated[Tasks, flat(group("Tasks", 2), without="seed")] = Tasks(),
    generation: Annotated[GenerationChecks, flat(group("Generation", 3))] = GenerationChecks(),
    session: Annotated[Session, flat(without="stream")] = Session(),
) -> None:
    """Measure perplexity, tasks, and what the model writes.

    $ shortstack evaluate small --against org/model --tasks piqa,winogrande --probes
    """
    if tasks.tasks is None:
        check_unused("evaluate without --tasks", tasks)

    from shortstack.data.tokens import same_tokens
    from shortstack.evaluation import compared
    from shortstack.evaluation.evaluator import prepare

    seeded_tasks = replace(tasks, seed=session.compute.seed) if tasks.tasks else None
    prepared = partial(prepare, text=text, tasks=seeded_tasks, compute=session.compute)
    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        origin = session.open_unpruned(against, checkpoint, progress) if against else None
        ready, base = prepared(checkpoint, generation=generation), None
        if origin:  # all that can be wrong with it is said before the first is measured
            if not same_tokens(checkpoint.tokenizer(), origin.tokenizer()):
                warning = "the two models have different tokenizers: perplexities per token cannot be compared"
                session.report.warn(warning)
            tasks.check_paired(ready.loaded)
            base = prepared(origin, generation=replace(generation, collapse_check=ready.collapse))
        if dry_run:
            return _preview([prepared_model for prepared_model in (ready, base) if prepared_model], session)
        result = ready.measured(progress)
    try:
        if base:
            with session.report.bars() as progress:
                result = compared(result, base.measured(progress))
    finally:  # what was measured is not lost, whatever becomes of the other model
        session.report.warn(result.collapse.warning if result.collapse else None)
        if base and result.base is None:
            session.report.warn(f"nothing is compared with {against}")
        session.report.result(result, output)
    if checkpoint.made_from and not against and not session.report.json:
        console.show(f"Add --against {shlex.quote(checkpoint.made_from)} to compare it with the unpruned model.")
    _next_step(model, checkpoint, session, against or checkpoint.made_from)
    return None


def _preview(models: Sequence[Prepared], session: Session) -> None:
    needed = Requirements()
    for ready in models:
        needed = needed.then(ready.requirements())
    rows = [("measured", ", ".join(ready.checkpoint.source for ready in models))]
    rows += [(f"windows of {name}", f"{len(tokens.ids):,}") for name, tokens in ready.texts.items()]
    rows += [("tasks", ", ".join(loaded.name for loaded in ready.loaded))] if ready.loaded else []
    rows += [("probes", f"{len(ready.items):,} items")] if ready.items else []
    rows += [("collapse check", "on generated text")] if ready.collapse else []
    show_dry_run(rows, needed, session.report)


def _next_step(model: str, checkpoint: Checkpoint, session: Session, unpruned: str | None) -> None:
    made_by = checkpoint.record.get("verb")
    if made_by == "heal" or (made_by == "prune" and is_quantised(checkpoint)):
        loads = f'{checkpoint.auto_class}.from_pretrained("{model}")'
        session.report.say(f"{loads}, or any program that reads a checkpoint directory")
    elif made_by == "prune":
        session.report.next_heal(model, unpruned, *session.source.command_line)
    else:
        session.report.next_cut(model, checkpoint, *session.source.command_line)
