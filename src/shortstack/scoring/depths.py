"""depth_curve(): what cutting the tail at every depth does, from one walk: every layer's output through norm and head."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from shortstack.charts.chart import Chart, Point, Series, axis
from shortstack.charts.drawing import HEIGHT
from shortstack.charts.picture import Named, Panel, Picture
from shortstack.checkpoint import Checkpoint, Model
from shortstack.data import Rows, Text, Tokens
from shortstack.decoder import Decoder, read_tokens
from shortstack.decoder.decoder import SkippedLayers
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import to_jsonable
from shortstack.machine.formats import counted, in_thousands, number
from shortstack.machine.numbers import checked, perplexity
from shortstack.machine.progress import Progress, silent
from shortstack.machine.tables import Column, Table, Tabled
from shortstack.scoring.measurement import Measurement, MeasurementSpec
from shortstack.scoring.metrics import METRICS
from shortstack.scoring.pictures import text_read

TOLERATED = math.log(1.5)  # a perplexity half as high again


@dataclass(frozen=True)
class Depth:
    """The model of the first `layers` layers: loss and KL to the base model, in nats per predicted token."""

    layers: int
    loss: float
    perplexity: float
    kl: float


@dataclass(frozen=True, repr=False)
class DepthCurve(Tabled):
    """Every depth, the whole model first."""

    depths: tuple[Depth, ...]
    tokens: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    seconds: float = 0.0

    def table(self) -> Table:
        """Return a row for each depth, the whole model first; losses and KL in nats per token."""
        of = self.tokens
        on = f" on {of['samples']} x {of['length']} tokens of {of['source']}" if of else ""
        rows = [(depth.layers, depth.loss, depth.perplexity, depth.kl) for depth in self.depths]
        columns = ("layers", Column("loss", "loss"), Column("perplexity", "perplexity"), "KL")
        notes = [f"{counted(self.removable, 'layer')} can go from the tail with a loss of at most {self.max_loss:.4f}."]
        title = f"cut at every depth{on}: {self.removable} of {self.depths[0].layers} layers can go"
        return Table.of(title, columns, rows, notes=notes)

    def plot(self) -> Picture:
        """Draw perplexity and KL divergence over the layers that are cut."""
        labels = {"perplexity": "perplexity", "kl": "KL divergence to the base model (nats per token)"}
        panels = [self._panel(name, label) for name, label in labels.items()]
        return Picture(f"The first layers alone, of {self.depths[0].layers}", panels, text_read(self.tokens))

    def _panel(self, name: str, label: str) -> Panel:
        points = []
        for depth in self.depths:
            gone, value = self.depths[0].layers - depth.layers, getattr(depth, name)
            points.append(Point(gone, value, f"{gone:g} removed, cut: {number(value)}"))
        x = axis("layers removed from the tail", [point.x for point in points], "{:g}".format, whole=True)
        text = in_thousands if name == "perplexity" else number
        y = axis(label, [point.y for point in points], text, log=name == "perplexity")
        svg = Chart(label, x, y, [Series("cut", points, 0)]).svg()
        legend: Named = [(None, "at the upper edge: infinite")] if any(point.infinite for point in points) else []
        return Panel("", svg, HEIGHT, legend)

    @property
    def max_loss(self) -> float:
        """The loss up to which layers can go, in nats per token: that of 1.5 times the base model's perplexity."""
        return self.depths[0].loss + TOLERATED

    @property
    def removable(self) -> int:
        """How many layers can go from the tail before the loss exceeds `max_loss`."""
        too_many = (gone for gone, depth in enumerate(self.depths) if depth.loss > self.max_loss)
        return next(too_many, len(self.depths)) - 1

    def to_dict(self) -> dict[str, Any]:
        data = to_jsonable(self)
        derived = {name: getattr(self, name) for name in ("max_loss", "removable")}
        return {"depths": data.pop("depths"), **derived, **data}


def depth_curve(
    model: Model,
    text: Tokens | Text | Rows | None = None,
    *,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> DepthCurve:
    """Measure the model without its last layers, for every number of them; N layer-forwards and N + 1 heads in all.

    Layers can go up to a perplexity 1.5 times the base model's. text: by default `mix`.
    """
    checkpoint = Checkpoint.of(model)
    tokens = read_tokens(checkpoint, text, compute=compute, progress=progress)
    started = time.perf_counter()
    decoder = Decoder.open(checkpoint, compute)
    layers = len(decoder.layers)
    cuts: list[SkippedLayers] = [frozenset(range(kept, layers)) for kept in range(layers, 0, -1)]
    spec = MeasurementSpec([METRICS["kl"]], singles=False, sets=cuts)
    run = Measurement(decoder, tokens, spec, progress=progress, stage="cutting at every depth").go()
    depths = tuple(_depth(run, tail) for tail in cuts)
    return DepthCurve(depths, tokens.record(), decoder.dtype, round(time.perf_counter() - started, 3))


def _depth(run: Measurement, tail: SkippedLayers) -> Depth:
    kept = run.layers - len(tail)
    loss = checked(run.loss(tail), f"loss of {kept} layers")
    return Depth(kept, loss, perplexity(loss), run.distance(tail))
