"""The result of healing: losses over the steps, and what was trained on what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.charts.chart import Chart, Point, Series, axis
from shortstack.charts.drawing import HEIGHT
from shortstack.charts.picture import Panel, Picture, short
from shortstack.healing.config import LOSSES
from shortstack.machine.formats import number, shown
from shortstack.machine.tables import Cell, Table, Tabled

Losses = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class History:
    """The course of a training.

    losses: (step, mean training loss since the last entry). held_out: (step, loss per token), step 0 before training.
    top1: (step, share of held-out tokens for which model and teacher have the same most likely token). best: the step whose
    weights were kept. batch: samples per forward pass, fewer than asked for where memory ran out. skipped: steps skipped for
    non-finite gradients. stopped: why training ended early, or None. tokens_per_s: of training, without held-out losses.
    """

    losses: Losses
    held_out: Losses = ()
    top1: Losses = ()
    steps: int = 0
    best: int = 0
    learning_rate: float = 0.0
    batch: int = 0
    skipped: int = 0
    stopped: str | None = None
    tokens_per_s: float = 0.0


@dataclass(frozen=True, repr=False)
class Healing(Tabled):
    """The result of heal(); the healed model is at `output`.

    objective: the loss, sft or distill. samples: held-out ones included. trained_layers: numbered as in the healed model.
    """

    output: Path
    method: str
    objective: str
    trainable_parameters: int
    history: History
    samples: int
    seconds: float
    peak_rss_bytes: int
    trained_layers: tuple[int, ...] = ()

    @property
    def held_out(self) -> tuple[float, float]:
        """Held-out loss before training and of the kept weights."""
        losses = dict(self.history.held_out)
        return losses[0], losses[self.history.best]

    @property
    def top1(self) -> tuple[float, float] | None:
        """Top-1 agreement with the teacher on held-out samples, before training and of the kept weights."""
        shares = dict(self.history.top1)
        return (shares[0], shares[self.history.best]) if shares else None

    def table(self) -> Table:
        history, losses = self.history, [loss for _, loss in self.history.losses]
        ends = (losses[0], losses[-1]) if len(losses) > 1 else next(iter(losses), None)  # of few steps there is one
        kind = LOSSES[self.objective]
        rows = [
            ("trained parameters", self.trainable_parameters),
            ("learning rate", f"{history.learning_rate:g}"),
            ("optimizer steps", history.steps),
            ("training loss, first to last", Cell(ends, "loss")),
            (f"held-out {kind}, before to best", Cell(self.held_out, "loss")),
            ("top token as the teacher's, before to best", self.top1 and "{:.1%} to {:.1%}".format(*self.top1)),
            ("tokens per second", Cell(history.tokens_per_s, "rate")),
            ("time", Cell(self.seconds, "seconds")),
            ("peak memory", Cell(self.peak_rss_bytes, "bytes")),
        ]
        title = f"{self.output} by {self.method}: held-out {kind} {shown(self.held_out, 'loss')}"
        shown_rows = [row for row in rows if row[1] is not None]
        return Table.of(title, ("healed", ""), shown_rows, notes=[*self._notes()])

    def _notes(self) -> Iterator[str]:
        history = self.history
        if not history.best:
            yield "No held-out loss was lower than before training: the weights are unchanged."
        elif history.best < history.steps:
            yield f"The weights are those of step {history.best}, which had the lowest held-out loss."
        if history.stopped:
            yield f"Training stopped at step {history.steps}: {history.stopped}."
        elif history.skipped:
            yield f"{history.skipped} steps were skipped: non-finite gradient."

    def plot(self) -> Picture:
        """Draw training and held-out loss over optimizer steps."""
        return loss_picture(self.history, str(self.output), kind=LOSSES[self.objective])

    def to_dict(self) -> dict[str, Any]:
        history, losses = self.history, self.history.losses
        return {
            "output": str(self.output),
            "method": self.method,
            "objective": self.objective,
            "samples": self.samples,
            "trainable_parameters": self.trainable_parameters,
            "trained_layers": list(self.trained_layers),
            "loss": {
                "first": losses[0][1] if losses else None,
                "last": losses[-1][1] if losses else None,
                "held_out_before": self.held_out[0],
                "held_out": self.held_out[1],
            },
            "top1_agreement": self.top1,
            "learning_rate": history.learning_rate,
            "steps": history.steps,
            "best_step": history.best,
            "skipped_steps": history.skipped,
            "stopped": history.stopped,
            "tokens_per_s": history.tokens_per_s,
            "losses": [list(entry) for entry in losses],
            "held_out_losses": [list(entry) for entry in history.held_out],
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def loss_picture(history: History, title: str, *, kind: str = LOSSES["sft"]) -> Picture:
    """Draw the losses over optimizer steps, in nats per token, and mark the step whose weights were kept."""
    lines = [
        Series(name, [Point(step, loss, f"step {step}, {name}: {loss:.4f}") for step, loss in losses], colour)
        for name, losses, colour in (("training loss", history.losses, 5), (f"held-out {kind}", history.held_out, 0))
        if losses
    ]
    points = [point for line in lines for point in line.points]
    x = axis("optimizer steps", [point.x for point in points], "{:,g}".format, whole=True)
    y = axis("loss (nats per token)", [point.y for point in points], number)
    svg = Chart(title, x, y, lines, marks=[("kept", float(history.best))]).svg()
    return Picture(short(title), [Panel("", svg, HEIGHT, [(line.colour, line.name) for line in lines])])
