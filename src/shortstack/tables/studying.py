"""What a study would take, how far it is and how it ended, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shortstack import console
from shortstack.removals import show_layers

if TYPE_CHECKING:
    from rich.console import Group

    from shortstack.estimating import Estimate
    from shortstack.running import Outcome
    from shortstack.shrinking import Shrunk
    from shortstack.watching import Frame


def show_estimate(title: str, found: Estimate) -> None:
    """A study's steps, what sharing saves, and what they would take."""
    rows = [
        (kind, f"{found.asked[kind]:,}", f"{steps:,}", console.duration(found.seconds[kind]))
        for kind, steps in found.steps.items()
    ]
    asked, steps = sum(found.asked.values()), sum(found.steps.values())
    rows.append(("start of a worker", "", "", console.duration(found.start_seconds)))
    rows.append(("all", f"{asked:,}", f"{steps:,}", console.duration(found.total_seconds)))
    heading = ("step", "of all trials", "shared, at most", "one worker, about")
    console.show_table(f"{title}: {found.trials:,} trials; nothing is run", heading, rows)

    def told(value: int | None) -> str:
        return "unknown" if value is None else console.size(value)

    console.show(
        f"Disk for weights, at most: {told(found.disk_bytes)} kept, {told(found.least_disk_bytes)} with --keep none."
    )
    console.show(f"Memory of the largest step, about: {told(found.memory_bytes)}.")
    for reason in found.unknown:
        console.show(f"Unknown: {reason}.")


def show_outcome(found: Outcome) -> None:
    """How a study ended, and what failed."""
    rows = [
        ("trials done", f"{found.done:,} of {found.trials:,}"),
        ("trials failed", f"{found.failed:,}"),
        ("steps run now", f"{found.steps:,}"),
        ("steps done before", f"{found.skipped:,}"),
    ]
    console.show_table(str(found.folder), ("", "study"), rows)
    for failure in found.failures:
        console.show(f"Failed: {failure['kind']}, {failure['error'].strip().splitlines()[-1]}")
        console.show(f"  log {failure['log']}")


def show_shrunk(found: Shrunk) -> None:
    """The plans that were compared and why one was chosen; then every model's perplexity."""
    if found.candidates:
        rows = [
            (
                each["metric"],
                show_layers(each["removed"]) if each["removed"] else "-",
                console.number(each["perplexity"]) if each["perplexity"] else f"failed: {each['error']}",
            )
            for each in found.candidates
        ]
        console.show_table("plans, each repaired", ("layers chosen by", "removed", "perplexity"), rows)
        console.show(found.why)
    roles = {"unpruned": "evaluate_base", "pruned": "evaluate_pruned", "healed": "evaluate_healed"}
    judged = {name: found.steps[role]["perplexity"] for name, role in roles.items() if role in found.steps}
    texts = list(judged["unpruned"])
    measured = [(text, *(console.number(each[text]["value"]) for each in judged.values())) for text in texts]
    console.show_table(f"{found.output}: perplexity", ("text", *judged), measured)


def frame(found: Frame) -> Group:
    """One look at a running study."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=found.title or "study", title_justify="left", title_style="bold", header_style="bold")
    for column in ("step", "done", "running", "failed", "at most", "each", ""):
        table.add_column(column, justify="left" if column in ("step", "") else "right")
    for name, kind in found.kinds.items():
        bar = "█" * round(20 * kind.done / max(kind.expected, 1))
        cells = (name, kind.done, kind.running, kind.failed, kind.expected, console.duration(kind.seconds), bar)
        table.add_row(*(Text(str(cell)) for cell in cells))
    states = ", ".join(f"{count} {state}" for state, count in found.trials.items() if count)
    lines = [f"trials: {states or 'none'}"]
    lines += [f"running {each.kind} for {console.duration(each.seconds)}" for each in found.running]
    lines += [f"failed: {failure}" for failure in found.failures]
    ended = "finished" if found.finished else f"to go, at most: {console.duration(found.eta)}"
    return Group(table, *(Text(line) for line in [*lines, ended]))
