"""An evaluation as a picture: tasks and probes as dots with their standard errors, beside the model's own base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shortstack.charts.picture import Panel, Picture, short
from shortstack.charts.rows import Dots, dots, dots_height
from shortstack.errors import InputError
from shortstack.evaluation.probes import Probed
from shortstack.evaluation.suites import SHARES
from shortstack.evaluation.task_results import TaskResult

COLOURS = (0, 5)  # of the model, and of the base that stands beside it


@dataclass(frozen=True)
class Shares:
    """A model's name, its tasks and its probes."""

    model: str
    tasks: Mapping[str, TaskResult]
    probes: Mapping[str, Probed]

    def rights(self) -> Iterator[tuple[str, float, float, float | None]]:
        """Of each task and probe the name, the share that is right, its standard error (NaN: unknown), and chance."""
        for name, task in self.tasks.items():
            if task.metric in SHARES:
                yield f"task {name}", task.value, task.stderr, task.chance
        for name, probe in self.probes.items():
            yield f"probe {name}", probe.accuracy.value, probe.accuracy.stderr, probe.chance


def evaluation_picture(models: Sequence[Shares], texts: Sequence[str]) -> Picture:
    """Shares of tasks and probes that are right, with one standard error and chance.

    models: the model last, its base before it. texts: what is said above.

    Raises:
        InputError: neither tasks nor probes were measured.
    """
    colours = COLOURS[: len(models)][::-1]
    rows: dict[str, Dots] = {}
    for colour, model in zip(colours, models, strict=True):
        for name, value, error, chance in model.rights():
            before, known = rows[name].values if name in rows else (), None if math.isnan(error) else error
            rows[name] = Dots(short(name.partition(" ")[2], 20), [*before, (colour, value, known)], chance)
    if not rows:
        expected, fix = "tasks or probes to draw", "evaluate with some"
        raise InputError("the picture", expected=expected, found="perplexity alone", fix=fix)
    legend = [(colour, short(model.model, 30)) for colour, model in zip(colours, models, strict=True)]
    svg = dots([*rows.values()], title="share right, by task and probe")
    panel = Panel("Share right ± one standard error; dotted: chance", svg, dots_height(len(rows)), legend[::-1])
    return Picture(short(models[-1].model), [panel], [short(each) for each in texts])
