"""An evaluation as a picture: texts, tasks and probes as dots with their standard errors, beside the model's own base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shortstack.charts.picture import Panel, Picture, short
from shortstack.charts.rows import Dots, dots, dots_height
from shortstack.errors import InputError
from shortstack.evaluation.perplexity import Perplexity
from shortstack.evaluation.probes import Probed
from shortstack.evaluation.task_results import TaskResult

COLOURS = (0, 5)  # of the model, and of the base that stands beside it


@dataclass(frozen=True)
class Shares:
    """A model's name, its texts, its tasks and its probes."""

    model: str
    perplexity: Mapping[str, Perplexity]
    tasks: Mapping[str, TaskResult]
    probes: Mapping[str, Probed]

    def likelihoods(self) -> Iterator[tuple[str, float, float, float | None]]:
        """Of each text the name, the likelihood of a token, exp(-loss), its standard error, and no chance."""
        for name, text in self.perplexity.items():
            yield f"text {name}", math.exp(-text.loss), math.exp(-text.loss) * text.loss_stderr, None

    def rights(self) -> Iterator[tuple[str, float, float, float | None]]:
        """Of each task and probe the name, the share that is right, its standard error (NaN: unknown), and chance."""
        for name, task in self.tasks.items():
            if task.is_share:
                yield f"task {name}", task.value, task.stderr, task.chance
        for name, probe in self.probes.items():
            yield f"probe {name}", probe.accuracy.value, probe.accuracy.stderr, probe.chance


def evaluation_picture(models: Sequence[Shares], texts: Sequence[str]) -> Picture:
    """Shares of tasks and probes that are right, and the likelihood of a text's token, with one standard error and chance.

    models: the model last, its base before it. texts: what is said above.
    """
    colours = COLOURS[: len(models)][::-1]
    legend = [(colour, short(model.model, 30)) for colour, model in zip(colours, models, strict=True)][::-1]
    panels = []
    for title, found in (
        ("Share right ± one standard error; dotted: chance", [model.rights() for model in models]),
        ("Likelihood of a token, 1 / perplexity ± one standard error", [model.likelihoods() for model in models]),
    ):
        rows = _rows(found, colours)
        if rows:
            svg = dots([*rows.values()], title=title)
            panels.append(Panel(title, svg, dots_height(len(rows)), legend))
    if not panels:
        expected, fix = "texts, tasks or probes to draw", "evaluate with some"
        raise InputError("none", expected=expected, fix=fix, where="the picture")
    return Picture(short(models[-1].model), panels, [short(each) for each in texts])


def _rows(found: Sequence[Iterator[tuple[str, float, float, float | None]]], colours: Sequence[int]) -> dict[str, Dots]:
    """A row for each name, with a dot for each model."""
    rows: dict[str, Dots] = {}
    for colour, each in zip(colours, found, strict=True):
        for name, value, error, chance in each:
            before, known = rows[name].values if name in rows else (), None if math.isnan(error) else error
            rows[name] = Dots(short(name.partition(" ")[2], 20), [*before, (colour, value, known)], chance)
    return rows
