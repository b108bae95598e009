"""Scores: what `score` found, and the order of removal that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.errors import DataError, InputError
from shortstack.machine.files import read_json, save_json, to_jsonable
from shortstack.machine.formats import show_layers, shown
from shortstack.machine.numbers import perplexity
from shortstack.machine.tables import Cell, Column, Table, Tabled
from shortstack.machine.typed import typed
from shortstack.scoring.metrics import removal_order

if TYPE_CHECKING:
    from shortstack.charts import Picture


def _ranked(values: Sequence[float]) -> list[Cell]:
    """Show scores, each with the place at which it goes."""
    place = {index: place for place, index in enumerate(removal_order(values), start=1)}
    return [Cell(value, note=f"({place[index]:>2})") for index, value in enumerate(values)]


@dataclass(frozen=True, repr=False)
class Scores(Tabled):
    """One tuple of `layers` floats per metric that scores layers, low = remove first.

    blocks: by metric, of blocks of `window` layers: one float for each place where such a block may start.
    base_loss is the unpruned model's loss on the same tokens (nats per predicted token), when a metric needed it.
    Where the text is of several sources the scores are over all, by their weights: the mean of what bi and the like say, of
    KL, and for ppl the perplexity over the unpruned one, its geometric mean.
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
    @typed
    def load(cls, path: str | Path) -> Scores:
        """Read scores that save() wrote.

        Raises:
            DataError: the file cannot be read, or holds something else.
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
            return f" Unpruned perplexity: {shown(perplexity(self.base_loss), 'perplexity')}."
        return " ppl is relative to the unpruned perplexity." if "ppl" in self.scores else ""

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
            expected, fix = f"between 1 and {self.layers - 1} layers", "mark fewer"
            raise InputError(drop, expected=expected, fix=fix, option="drop")
        title = f"{short(self.model.get('source', 'model'), 42)}, {self.layers} layers"
        return score_picture(
            self.scores, amount, title=title, tokens=self.tokens, blocks=self.blocks, window=self.window
        )

    @property
    def default_metric(self) -> str:
        """The metric to use when none is named: measured loss, else the first one scored."""
        return "ppl" if "ppl" in self.scores else next(iter(self.scores))

    def order(self, metric: str) -> tuple[int, ...]:
        """Order layers from the first to remove to the last; ties go to the lower index."""
        if metric not in self.scores:
            raise InputError(
                repr(metric),
                expected=f"one of the scored metrics ({', '.join(self.scores)})",
                fix=f"score again with {metric}",
                option="metric",
            )
        return removal_order(self.scores[metric])

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data, with the removal order of each metric beside its scores."""
        return {**to_jsonable(self), "order": {name: list(self.order(name)) for name in self.scores}}

    def save(self, path: str | Path) -> None:
        save_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object) -> Scores:
        """Return the inverse of to_dict; errors as load()."""
        try:
            known = {key: data[key] for key in cls.__dataclass_fields__}
            known["scores"] = _numbers(data["scores"])
            known["blocks"] = _numbers(data["blocks"])
            scores = cls(**known)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _not_scores(where, "the JSON that `shortstack score -o` writes", repr(error)) from error
        if type(scores.layers) is not int or not scores.scores:
            raise _not_scores(where, "a layer count and at least one metric", "none")
        _check_numbers(where, scores.scores, scores.layers)
        if scores.blocks or scores.window is not None:
            if type(scores.window) is not int or not 0 < scores.window <= scores.layers:
                raise _not_scores(where, f"blocks of 1 to {scores.layers} layers", repr(scores.window))
            size = scores.window
            _check_numbers(where, scores.blocks, scores.layers - size + 1, f" of blocks of {size}")
        return scores


def _numbers(data: Mapping[str, Sequence[Any]]) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(math.inf if value is None else float(value) for value in values) for name, values in data.items()
    }


def _check_numbers(where: object, scores: Mapping[str, Sequence[float]], amount: int, what: str = "") -> None:
    for name, values in scores.items():
        if len(values) != amount or not all(value > -math.inf for value in values):  # false for NaN, too
            raise _not_scores(where, f"{amount} numbers for {name}{what}", f"{list(values)}")


def _not_scores(where: object, expected: str, actual: str) -> DataError:
    return DataError(actual, expected=expected, fix="score the model again", where=where)
