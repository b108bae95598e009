"""A plan: which layers of a model are removed and which are kept, and what that saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.checkpoint.sizes import Sizes
from shortstack.errors import PlanError
from shortstack.machine.files import read_json, save_json, to_jsonable
from shortstack.machine.formats import show_layers
from shortstack.machine.tables import Cell, Column, Table, Tabled
from shortstack.planning.layer_sets import check_removal
from shortstack.scoring.scores import Scores, read_fields

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint


@dataclass(frozen=True)
class Change:
    """A quantity before and after the cut."""

    before: int
    after: int


@dataclass(frozen=True, repr=False)
class Plan(Tabled):
    """The layers of a model to remove, numbered from 0.

    wanted: the selected layers, where that cut is not exact and the nearest exact one took its place. model_digest: of the
    weights, where they decided; "" else. scores: what the layers were selected by. candidates: where several cuts were
    measured on held-out tokens, each by name or layers; measure: what was measured.
    """

    layers: int
    removed: tuple[int, ...]
    strategy: str
    parameters: Change | None = None
    bytes: Change | None = None
    wanted: tuple[int, ...] | None = None
    model_digest: str = ""
    scores: Scores | None = None
    candidates: Mapping[str, float] | None = None
    measure: str = ""

    def __post_init__(self) -> None:
        check_removal(self.removed, self.layers)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that save() wrote.

        Raises:
            DataError: the file cannot be read, or is not a plan.
            PlanError: it names layers that do not exist, or all.
        """
        return cls.from_dict(read_json(Path(path)), where=path)

    def table(self) -> Table:
        """Return a table of the savings: layers, parameters and bytes before and after."""
        sizes = (("layers", "count", Change(self.layers, len(self.kept))), ("parameters", "count", self.parameters))
        rows = [
            (name, Cell(change.before, kind), Cell(change.after, kind), change.after / change.before - 1)
            for name, kind, change in (*sizes, ("bytes", "bytes", self.bytes))
            if change
        ]
        title = f"Remove layers {show_layers(self.removed)} of {self.layers} ({self.strategy})"
        caption = f"Layers are numbered from 0, ranges inclusive. Kept: {show_layers(self.kept)}."
        return Table.of(
            title, (Column("plan", "text"), "before", "after", Column("change", "points", "%")), rows, caption=caption
        )

    def tables(self) -> list[Table]:
        """Return the tables of the savings and of the candidates."""
        if not self.candidates:
            return [self.table()]
        return [self.table(), Table.of(self.measure, (Column("cut", "text"), "value"), [*self.candidates.items()])]

    @property
    def kept(self) -> tuple[int, ...]:
        gone = {*self.removed}
        return tuple(layer for layer in range(self.layers) if layer not in gone)

    def check_depth(self, layers: int) -> None:
        """Refuse a plan for a model of another number of layers."""
        if layers != self.layers:
            message = f"the plan is for {self.layers} layers, and the model has {layers}; plan this model"
            raise PlanError(message, option="plan")

    def check_model(self, checkpoint: Checkpoint) -> None:
        """Refuse a plan for a model of other weights, where weights decided, or of another number of layers."""
        self.check_depth(checkpoint.depth)
        if self.model_digest and self.model_digest != checkpoint.weights_digest:
            message = "the plan was made from another model: its weights differ; plan this model, or name the layers"
            raise PlanError(message, option="plan")

    def sized(self, sizes: Sizes) -> Plan:
        """Return the same plan with the parameters and bytes that it saves."""
        self.check_depth(len(sizes.layer_bytes))
        before, after = sizes.of(range(self.layers)), sizes.of(self.kept)
        return replace(self, parameters=Change(before[0], after[0]), bytes=Change(before[1], after[1]))

    def to_dict(self) -> dict[str, Any]:
        scores = self.scores.to_dict() if self.scores else None
        return {**to_jsonable(replace(self, scores=None)), "scores": scores, "kept": list(self.kept)}

    def save(self, path: str | Path) -> None:
        save_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object) -> Plan:
        """Return the inverse of to_dict; errors as load()."""
        scores = Scores.from_dict(data["scores"], where=where) if data.get("scores") else None
        return read_fields(cls, {**data, "scores": scores}, "plan", where)
