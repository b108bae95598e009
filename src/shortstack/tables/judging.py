"""What a model is worth, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from shortstack import console

if TYPE_CHECKING:
    from shortstack.collapse import Collapse
    from shortstack.evaluation import Evaluation
    from shortstack.probes import Probed


def show_evaluation(title: str, evaluation: Evaluation) -> None:
    """What was measured, beside the unpruned model where that is known."""
    base = evaluation.base
    texts = {
        name + ", base" * (each is base): each.perplexity[name]
        for name in evaluation.perplexity
        for each in (evaluation, *([base] if base else []))
    }
    rows = [
        (
            name,
            console.number(found.value),
            f"{found.tokens:,}",
            f"{found.loss:.4f} +- {found.loss_stderr:.4f}" if found.windows["samples"] > 1 else f"{found.loss:.4f}",
            "yes" if found.windows["bos"] else "no",
            found.dtype,
        )
        for name, found in texts.items()
    ]
    if rows:
        console.show_table(title, ("text", "perplexity", "tokens", "loss +- s.e.", "BOS", "computed in"), rows)
    if evaluation.tasks:
        _show_tasks("tasks" if rows else title, evaluation)
    if base:
        _show_against(evaluation, base)
    if evaluation.probes:
        _show_probes(evaluation.probes, base)
    if evaluation.collapse:
        _show_collapse(evaluation.collapse)


def _show_tasks(title: str, evaluation: Evaluation) -> None:
    """Each task's value, the number of documents and what guessing gets, and the average of what are shares."""
    rows = [
        (
            name,
            found.metric,
            f"{found.value:.4f} +- {found.stderr:.4f}" if math.isfinite(found.stderr) else console.number(found.value),
            f"{found.n:,}",
            "-" if found.chance is None else f"{found.chance:.2f}",
            "yes" if found.bos else "no",
        )
        for name, found in evaluation.tasks.items()
    ]
    console.show_table(title, ("task", "metric", "value +- s.e.", "documents", "by guessing", "BOS"), rows)
    if evaluation.average is not None and len(evaluation.tasks) > 1:
        base = evaluation.base
        beside = f", base {base.average:.4f}" if base and base.average is not None else ""
        console.show(f"Average: {evaluation.average:.4f}{beside}")


def _show_against(evaluation: Evaluation, base: Evaluation) -> None:
    """The same documents asked of both models."""
    rows = [
        (
            name,
            f"{base.tasks[name].value:.4f}",
            f"{evaluation.tasks[name].value:.4f}",
            f"{found.difference:+.4f} ({found.interval[0]:+.4f} to {found.interval[1]:+.4f})",
            f"{found.p_holm:.2g}",
            "at chance" if found.base_at_chance else _share_kept(found.retention, found.retention_above_chance),
        )
        for name, found in evaluation.against.items()
    ]
    heading = ("task", "base", "here", "difference (95 %)", "p, Holm", "kept (above chance)")
    if rows:
        console.show_table(f"against {base.model}, document by document", heading, rows)


def _share_kept(retention: float | None, above_chance: float | None) -> str:
    if retention is None:
        return "-"
    return f"{retention:.0f} %" + ("" if above_chance is None else f" ({above_chance:.0f} %)")


def _show_probes(probes: Mapping[str, Probed], base: Evaluation | None) -> None:
    """The share of each probe's items that were answered rightly, beside the base's."""

    def right(found: Probed) -> str:
        return f"{found.accuracy.value:.3f} +- {found.accuracy.stderr:.3f}"

    rows = [
        (name, right(found), *([right(base.probes[name])] if base else []), f"{found.chance:.3f}", str(found.n))
        for name, found in probes.items()
    ]
    heading = ("probe", "right +- s.e.", *(["base"] if base else []), "by guessing", "items")
    console.show_table("probes, answered greedily", heading, rows)


def _show_collapse(found: Collapse) -> None:
    """A line where all is well; else what has fallen, and the text that shows it."""
    base = "its base" if found.against_base else "a small model that works"
    if not found.fallen:
        least = min(found.shares.values())
        console.show(f"No loop and no silence: what it writes keeps {least:.0%} or more of each measure of {base}.")
        return
    values, wanted = asdict(found.fluency), asdict(found.base)
    rows = [
        (
            name,
            console.number(values[name]),
            console.number(wanted[name]),
            f"{share:.0%}",
            "yes" * (name in found.fallen),
        )
        for name, share in found.shares.items()
    ]
    console.show_table("collapsed: what it writes freely", ("measure", "model", base, "share kept", "fallen"), rows)
    console.show(f"It writes: {found.sample}")
