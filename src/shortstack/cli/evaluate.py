"""evaluate: perplexity, tasks, probes and what a model writes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import Model, Saved, Session, check_unused, flat, group
from shortstack.evaluation import EvaluationText, GenerationChecks, Tasks
from shortstack.evaluation.suites import PERPLEXITIES
from shortstack.machine.files import check_new
from shortstack.machine.formats import number
from shortstack.machine.memory import Requirements

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.evaluation import Evaluation, TaskResult
    from shortstack.evaluation.degeneration import Collapse
    from shortstack.evaluation.evaluator import Prepared
    from shortstack.evaluation.paired import Paired
    from shortstack.evaluation.probes import Probed


def evaluate(
    model: Model,
    /,
    *,
    against: Annotated[
        str | None, Parameter(help="The model it was made from: measured too, and compared document by document.")
    ] = None,
    output: Saved = None,
    dry_run: DryRun = False,
    text: Annotated[EvaluationText, flat(group("Perplexity"))] = EvaluationText(),
    tasks: Annotated[Tasks, flat(group("Tasks", 2), without="seed")] = Tasks(),
    generation: Annotated[GenerationChecks, flat(group("What it writes", 3))] = GenerationChecks(),
    session: Annotated[Session, flat(without="stream")] = Session(),
) -> None:
    """Measure perplexity, tasks, and what the model writes.

    $ shortstack evaluate small --against org/model --tasks piqa,winogrande --probes
    """
    _check(tasks, generation, against)
    if output:
        check_new(output)

    from shortstack.evaluation import compared
    from shortstack.evaluation.evaluator import prepare

    asked = replace(tasks, seed=session.compute.seed) if tasks.tasks else None

    def prepared(checkpoint: Checkpoint, generation: GenerationChecks) -> Prepared:
        return prepare(checkpoint, text=text, tasks=asked, generation=generation, compute=session.compute)

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        origin = session.alone.open(against, progress) if against else None
        ready, base = prepared(checkpoint, generation), None
        if origin:  # all that can be wrong with it is said before the first is measured
            session.report.warn(_other_tokens(checkpoint, origin))
            base = prepared(origin, replace(generation, collapse_check=ready.collapse))
        if dry_run:
            return _preview([each for each in (ready, base) if each], session)
        result = ready.measured(progress)
    try:
        if base:
            with session.report.bars() as progress:
                result = compared(result, base.measured(progress), seed=session.compute.seed)
    finally:  # what was measured is not lost, whatever becomes of the other model
        _report(model, checkpoint, result, session, output, against=against)
    _next_step(model, checkpoint, session, against or checkpoint.made_from)
    return None


def _report(
    model: str,
    checkpoint: Checkpoint,
    result: Evaluation,
    session: Session,
    output: Path | None,
    *,
    against: str | None,
) -> None:
    """Say and write what was measured, and what is not there although it was asked for."""
    session.report.warn(result.collapse.warning if result.collapse else None)
    if against and result.base is None:
        session.report.warn(f"{against} was not measured, so that nothing is compared")

    def show() -> None:
        show_evaluation(f"{model}: {checkpoint.anatomy.layers} layers", result)
        if checkpoint.made_from and not against:
            beside = f"--against {shlex.quote(checkpoint.made_from)} measures both"
            console.show(f"The unpruned model is not beside it: {beside}.")

    session.report.result(result.to_dict(), show, output)


def _check(tasks: Tasks, generation: GenerationChecks, against: str | None) -> None:
    """Say what is wrong with what is asked before any model is opened."""
    if tasks.tasks is None:
        check_unused("evaluate without --tasks", tasks)
    if against and tasks.tasks:
        tasks.check_paired()
    if against and (tasks.tasks or generation.probes):
        from shortstack.evaluation import paired

        paired.check_scipy()


def _preview(models: Sequence[Prepared], session: Session) -> None:
    """What would be measured of each model, one after the other."""
    needed = Requirements()
    for ready in models:
        needed = needed.then(ready.requirements())
    rows = [("measured", ", ".join(ready.checkpoint.source for ready in models))]
    rows += [(f"windows of {name}", f"{len(found.ids):,}") for name, found in ready.texts.items()]
    rows += [("tasks", ", ".join(loaded.name for loaded in ready.run.loaded))] if ready.run else []
    rows += [("probes", f"{len(ready.items):,} items")] if ready.items else []
    rows += [("free text", "written, to see whether it collapses")] if ready.collapse else []
    show_dry_run(rows, needed, session.report)


def _next_step(model: str, checkpoint: Checkpoint, session: Session, unpruned: str | None) -> None:
    """What to do after a model was measured, by the verb that wrote it."""
    made_by = checkpoint.record.get("verb")
    if made_by == "heal":
        loads = f'AutoModelForCausalLM.from_pretrained("{model}")'
        session.report.say(f"{loads}, or any program that reads a checkpoint directory")
    elif made_by == "prune":
        session.report.next_heal(model, unpruned, *session.source.words)
    else:
        session.report.next_cut(model, checkpoint, *session.source.words)


def _other_tokens(checkpoint: Checkpoint, origin: Checkpoint) -> str | None:
    """What to know of two models that cut text into tokens differently."""
    from shortstack.data.tokens import same_tokens

    if same_tokens(checkpoint.tokenizer(), origin.tokenizer()):
        return None
    return "the two models have different tokenizers: perplexities per token cannot be compared"


Measured = TypeVar("Measured")


def show_evaluation(title: str, evaluation: Evaluation) -> None:
    """What was measured, beside the unpruned model where that is known."""
    base = evaluation.base
    texts = _beside(evaluation.perplexity, base.perplexity if base else None)
    rows = [
        (
            name,
            number(text.value),
            f"{text.tokens:,}",
            f"{text.loss:.4f} +- {text.loss_stderr:.4f}" if text.windows["samples"] > 1 else f"{text.loss:.4f}",
            "yes" if text.windows["bos"] else "no",
            text.dtype,
        )
        for name, text in texts.items()
    ]
    if rows:
        console.show_table(title, ("text", "perplexity", "tokens", "loss +- s.e.", "BOS", "computed in"), rows)
    if evaluation.tasks:
        _show_tasks("tasks" if rows else title, evaluation)
    if base and evaluation.against:
        values = {name: (base.tasks[name].value, evaluation.tasks[name].value) for name in evaluation.against}
        _show_against(f"against {base.model}, document by document", evaluation.against, values)
        for name in evaluation.against:
            _show_unit(name, evaluation.tasks[name])
    for name in evaluation.tasks.keys() - evaluation.against.keys() if base else ():
        metric = evaluation.tasks[name].metric
        console.show(f"{name}: not compared; {metric} is one number of all documents, and not one of each.")
    if evaluation.probes:
        _show_probes(evaluation.probes, base)
    if base and evaluation.probes_against:
        paired = evaluation.probes_against
        values = {name: (pair.base, pair.value) for name, pair in paired.items()}
        _show_against(f"probes against {base.model}, item by item", paired, values)
    if evaluation.collapse:
        _show_collapse(evaluation.collapse)


def _beside(results: Mapping[str, Measured], base: Mapping[str, Measured] | None) -> dict[str, Measured]:
    """Results by name, each with the base's after it where there is one."""
    named = ((name, each) for name in results for each in ((name, results), (f"{name}, base", base)))
    return {label: values[name] for name, (label, values) in named if values is not None}


def _show_tasks(title: str, evaluation: Evaluation) -> None:
    """Each task's value, the number of documents and what guessing gets, and averages of what are shares."""
    base = evaluation.base
    results = _beside(evaluation.tasks, base.tasks if base else None)
    rows = [
        (
            name,
            task.metric,
            f"{task.value:.4f} +- {task.stderr:.4f}" if math.isfinite(task.stderr) else number(task.value),
            f"{task.n:,}",
            "-" if task.chance is None else f"{task.chance:.2f}",
            "yes" if task.bos else "no",
        )
        for name, task in results.items()
    ]
    console.show_table(title, ("task", "metric", "value +- s.e.", "documents", "chance", "BOS"), rows)
    _show_averages(evaluation)


def _averages(evaluation: Evaluation) -> dict[str, float]:
    """The average of each suite that was asked whole; where there is none, of all tasks."""
    averages = {f"Average, {suite}": value for suite, value in evaluation.averages.items()}
    if not averages and evaluation.average is not None and len(evaluation.tasks) > 1:
        averages = {"Average": evaluation.average}
    return averages


def _show_averages(evaluation: Evaluation) -> None:
    base = _averages(evaluation.base) if evaluation.base else {}
    for name, value in _averages(evaluation).items():
        beside = f", base {base[name]:.4f}" if name in base else ""
        console.show(f"{name}: {value:.4f}{beside}")


def _show_against(title: str, paired: Mapping[str, Paired], values: Mapping[str, tuple[float, float]]) -> None:
    """What the same documents, asked of both models, say; values: by name the base's, and that of the model here."""
    pairs = paired.values()
    columns = {
        "base": [f"{values[name][0]:.4f}" for name in paired],
        "here": [f"{values[name][1]:.4f}" for name in paired],
        "difference +- s.e.": [f"{each.difference:+.4f} +- {each.stderr:.4f}" for each in pairs],
        "95 % interval": [f"{each.interval[0]:+.4f} to {each.interval[1]:+.4f}" for each in pairs],
        "p, Holm": [f"{each.p_holm:.2g}" for each in pairs],
        "kept": [_share_kept(each.retention) for each in pairs],
        "above chance": [
            "base at chance" if each.base_at_chance else _share_kept(each.retention_above_chance) for each in pairs
        ],
    }
    console.show_columns(title, ("asked", [*paired]), columns)


def _show_unit(name: str, task: TaskResult) -> None:
    """What a difference is of, where it is not of the two values beside it."""
    if task.metric in PERPLEXITIES:
        unit = f"log-likelihood in nats per {PERPLEXITIES[task.metric]}, higher is better"
        console.show(f"{name}: base and here are {task.metric}; the difference and its interval are of the {unit}.")
    elif not task.higher_is_better:
        console.show(f"{name}: of {task.metric} less is better; the difference and its interval have the sign turned.")


def _share_kept(retention: float | None) -> str:
    return "-" if retention is None else f"{round(retention)} %"  # an int: no minus before a 0


def _show_probes(probes: Mapping[str, Probed], base: Evaluation | None) -> None:
    """The share of each probe's items that were answered rightly, beside the base's."""

    def right(probe: Probed) -> str:
        return f"{probe.accuracy.value:.3f} +- {probe.accuracy.stderr:.3f}"

    rows = [
        (name, right(probe), *([right(base.probes[name])] if base else []), f"{probe.chance:.3f}", str(probe.n))
        for name, probe in probes.items()
    ]
    heading = ("probe", "right +- s.e.", *(["base"] if base else []), "chance", "items")
    console.show_table("probes, answered greedily", heading, rows)


def _show_collapse(collapse: Collapse) -> None:
    """A line where all is well; else what has fallen, and the text that shows it."""
    base = "its base" if collapse.against_base else "a small model that works"
    if not collapse.fallen:
        least = min(collapse.shares.values())
        console.show(f"No loop and no silence: what it writes keeps {least:.0%} or more of each measure of {base}.")
        return
    values, wanted = asdict(collapse.fluency), asdict(collapse.base)
    rows = [
        (name, number(values[name]), number(wanted[name]), f"{share:.0%}", "yes" * (name in collapse.fallen))
        for name, share in collapse.shares.items()
    ]
    console.show_table("collapsed: what it writes freely", ("measure", "model", base, "share kept", "fallen"), rows)
    console.show(f"It writes: {collapse.sample}")
