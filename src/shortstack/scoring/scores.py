"""Scores: what `score` found, and the order of removal that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from shortstack.checkpoint.sizes import Sizes
from shortstack.errors import DataError, InputError, PlanError
from shortstack.machine.files import read_json, save_json, to_jsonable
from shortstack.machine.formats import show_layers, shown
from shortstack.machine.numbers import perplexity
from shortstack.machine.options import input_error
from shortstack.machine.tables import Cell, Column, Table, Tabled
from shortstack.scoring.metrics import Metric, metrics_named, removal_order

if TYPE_CHECKING:
    from shortstack.charts import Picture
    from shortstack.checkpoint import Checkpoint


def _ranked(values: Sequence[float]) -> list[Cell]:
    """Show scores, each with the place at which it goes."""
    place = {index: place for place, index in enumerate(removal_order(values), start=1)}
    return [Cell(value, note=f"({place[index]:>2})") for index, value in enumerate(values)]


@dataclass(frozen=True, repr=False)
class Scores(Tabled):
    """One tuple of `layers` floats per metric that scores layers, low = remove first.

    blocks: by metric, of blocks of `window` layers: one float for each place where such a block may start.
    base_loss is the base model's loss on the same tokens (nats per predicted token), when a metric needed it.
    Where the text is of several sources the scores are over all, by their weights: the mean of what bi and the like say, of
    KL, and for ppl the perplexity over the base model's, its geometric mean.
    tokens and model are the records of what was read (source, digest, sizes): plan and the report quote them.
    """

    layers: int
    scores: dict[str, tuple[float, ...]]
    window: int | None = None
    blocks: dict[str, tuple[float, ...]] = field(default_factory=dict)
    tokens: dict[str, Any] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    base_loss: float | None = None
    seconds: float = 0.0

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read scores that save() wrote.

        Raises:
            DataError: the file cannot be read, or is not scores.
        """
        return cls.from_dict(read_json(Path(path)), where=path)

    def table(self) -> Table:
        """Return a row for each layer, a column for each metric with the order of removal."""
        of, named = self.tokens or {}, ", ".join(self.scores)
        on = f" on {of['samples']} x {of['length']} tokens of {of['source']}" if of else ""
        title = f"{self.layers} layers by {named}{on}"
        caption = f"Low = remove first; in brackets the order of removal.{self._base}"
        rows = zip(range(self.layers), *map(_ranked, self.scores.values()), strict=True)
        return Table.of(title, ["layer", *self.scores], [*rows], caption=caption)

    def tables(self) -> list[Table]:
        """Return the table of layers, and that of blocks."""
        return [self.table(), *([self._blocks()] if self.blocks else [])]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The sources, where the text is of several."""
        return tuple(kind["source"] for kind in (self.tokens or {}).get("kinds", ()))

    @property
    def _base(self) -> str:
        if self.base_loss is not None and not self.kinds:
            return f" Perplexity of the base model: {shown(perplexity(self.base_loss), 'perplexity')}."
        return " ppl is relative to the perplexity of the base model." if "ppl" in self.scores else ""

    def _blocks(self) -> Table:
        size = self.window or 1
        blocks = [show_layers(range(start, start + size)) for start in range(self.layers - size + 1)]
        rows = zip(blocks, *map(_ranked, self.blocks.values()), strict=True)
        columns = [Column("layers", "text"), *self.blocks]
        return Table.of(f"blocks of {size} layers", columns, [*rows])

    def plot(self, drop: int | None = None) -> Picture:
        """Draw orders, values and agreement of the metrics; the `drop` layers that go first marked, or a quarter.

        Raises:
            InputError: there are not so many layers.
        """
        from shortstack.charts.picture import short
        from shortstack.scoring.pictures import score_picture

        amount = max(1, int(self.layers / 4 + 0.5)) if drop is None else drop
        if not 1 <= amount < self.layers:
            raise InputError(f"{drop} layers cannot be marked of {self.layers}; mark fewer", option="drop")
        title = f"{short(self.model.get('source', 'model'), 42)}, {self.layers} layers"
        return score_picture(
            self.scores, amount, title=title, tokens=self.tokens, blocks=self.blocks, window=self.window
        )

    @property
    def default_metric(self) -> str:
        """The metric to use when none is named: measured loss, else the first one scored."""
        return "ppl" if "ppl" in self.scores else next(iter(self.scores))

    def metric_of(self, name: str | None) -> Metric:
        """Return the metric of that name, or the default one."""
        return metrics_named([name or self.default_metric])[0]

    @property
    def sizes(self) -> Sizes | None:
        """The sizes of the model's layers; None where they are not on record."""
        return Sizes.from_dict(self.model, where="the scores") if "layer_bytes" in self.model else None

    def check_model(self, checkpoint: Checkpoint) -> None:
        """Refuse scores of a model of other weights, or of another number of layers."""
        digest = self.model.get("digest") or checkpoint.weights_digest
        if self.layers != checkpoint.anatomy.layers or digest != checkpoint.weights_digest:
            raise PlanError("the scores are of another model: its weights differ; score this model", option="scores")

    def order(self, metric: str) -> tuple[int, ...]:
        """Order layers from the first to remove to the last; ties go to the lower index."""
        if metric not in self.scores:
            message = f"{metric} was not scored, only {', '.join(self.scores)}; score again with {metric}"
            raise InputError(message, option="metric")
        return removal_order(self.scores[metric])

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data, with the removal order of each metric beside its scores."""
        return {**to_jsonable(self), "order": {name: list(self.order(name)) for name in self.scores}}

    def save(self, path: str | Path) -> None:
        save_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object) -> Scores:
        """Return the inverse of to_dict; errors as load()."""
        tables = {name: _infinite(data[name]) for name in ("scores", "blocks") if isinstance(data.get(name), Mapping)}
        scores = read_fields(cls, {**data, **tables}, "score", where)
        size = scores.window or 1
        rows = [*((row, scores.layers) for row in scores.scores.values())]
        rows += [(row, scores.layers - size + 1) for row in scores.blocks.values()]
        if not scores.scores or any(
            len(row) != count or not all(value > -math.inf for value in row) for row, count in rows
        ):
            raise DataError(
                f"{where}: scores that are not one number per layer of {scores.layers}; score the model again"
            )
        return scores


Fields = TypeVar("Fields")


def read_fields(cls: type[Fields], data: Mapping[str, Any], verb: str, where: object) -> Fields:
    """Read a dataclass from the JSON that a verb writes, its types checked; other keys are ignored.

    Raises:
        DataError: a field is missing, or of another type.
    """
    fields = {name: data[name] for name in cls.__dataclass_fields__ if name in data}  # type: ignore[attr-defined]
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        reason = f"{input_error(error)}"[:80]
        raise DataError(
            f"{where} is not what `shortstack {verb} -o` writes ({reason}); {verb} the model again"
        ) from error


def _infinite(table: Mapping[str, Any]) -> dict[str, Any]:
    """Put infinity, which JSON does not have, in place of null."""
    return {
        name: [math.inf if value is None else value for value in row] if isinstance(row, list) else row
        for name, row in table.items()
    }
