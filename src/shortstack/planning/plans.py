"""A plan: which layers of a model go and which stay, and what that saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.checkpoint import Sizes
from shortstack.checkpoint.sizes import not_written_by
from shortstack.errors import PlanError
from shortstack.machine.files import read_json, save_json, to_jsonable
from shortstack.machine.formats import show_layers
from shortstack.machine.tables import Cell, Column, Table, Tabled
from shortstack.machine.typed import typed
from shortstack.planning.layer_sets import check_removal

if TYPE_CHECKING:
    from shortstack.charts import Picture


@dataclass(frozen=True)
class Change:
    """A quantity before and after the cut."""

    before: int
    after: int


@dataclass(frozen=True, repr=False)
class Plan(Tabled):
    """The layers that go and the layers that stay, numbered from 0 in the model the plan is for.

    compared: where several cuts were measured on held-out tokens, this one and others by name or by layers, in nats per
    token; compared_by: what of.
    """

    layers: int
    removed: tuple[int, ...]
    strategy: str
    parameters: Change | None = None
    bytes: Change | None = None
    compared: Mapping[str, float] | None = None
    compared_by: str = ""

    def __post_init__(self) -> None:
        check_removal(self.removed, self.layers, where="plan")

    @classmethod
    @typed
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that save() wrote.

        Raises:
            DataError: the file cannot be read, or holds something else.
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
        title = f"{self.layers} layers without {show_layers(self.removed)}, by {self.strategy}"
        notes = [f"removed: {show_layers(self.removed)}", f"kept: {show_layers(self.kept)}"]
        caption = "Layers are numbered from 0, ranges inclusive."
        columns = (Column("plan", "text"), "before", "after", Column("change", "points", "%"))
        return Table.of(title, columns, rows, caption=caption, notes=notes)

    def tables(self) -> list[Table]:
        """Return the tables of the savings and of the cuts that were compared."""
        if not self.compared:
            return [self.table()]
        title = f"{self.compared_by}, on held-out tokens, nats"
        return [self.table(), Table.of(title, (Column("cut", "text"), "value"), [*self.compared.items()])]

    def plot(self) -> Picture:
        """Return the stack of layers as a picture, those that go empty."""
        from shortstack.charts.picture import Panel, Picture, short
        from shortstack.charts.rows import STACK_HEIGHT, Layer, stack

        places = {layer: place for place, layer in enumerate(self.kept)}
        stays = {layer: Layer("kept", f"layer {layer}, then {place}") for layer, place in places.items()}
        layers = [stays.get(layer) or Layer("removed", f"layer {layer} goes") for layer in range(self.layers)]
        svg = stack(layers, title="the stack of layers")
        panel = Panel("", svg, STACK_HEIGHT)
        about = f"by {self.strategy}; {self.layers} layers to {len(self.kept)}; empty: removed"
        return Picture(f"without layers {short(show_layers(self.removed), 40)}", [panel], [about])

    @property
    def kept(self) -> tuple[int, ...]:
        gone = set(self.removed)
        return tuple(layer for layer in range(self.layers) if layer not in gone)

    def check_depth(self, layers: int, *, where: object) -> None:
        """Refuse a plan for a model of another number of layers."""
        if layers != self.layers:
            raise PlanError(
                f"a plan for {self.layers} layers",
                expected=f"a plan for the model's {layers} layers",
                fix="make the plan from this model",
                where=where,
            )

    def sized(self, sizes: Sizes) -> Plan:
        """Return the same plan with the parameters and bytes it saves filled in."""
        self.check_depth(len(sizes.layer_bytes), where="plan")
        before, after = sizes.of(range(self.layers)), sizes.of(self.kept)
        if self.parameters and self.parameters.before != before[0]:
            raise PlanError(
                f"a plan for a model of {self.parameters.before:,}",
                expected=f"a plan for this model's {before[0]:,} parameters",
                fix="make the plan from this model",
                where="plan",
            )
        return replace(self, parameters=Change(before[0], after[0]), bytes=Change(before[1], after[1]))

    def to_dict(self) -> dict[str, Any]:
        return {**to_jsonable(self), "kept": list(self.kept)}

    def save(self, path: str | Path) -> None:
        save_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object) -> Plan:
        """Return the inverse of to_dict; errors as load()."""
        try:
            layers, removed, strategy = data["layers"], tuple(data["removed"]), str(data["strategy"])
            changes = [None if data.get(key) is None else Change(**data[key]) for key in ("parameters", "bytes")]
        except (KeyError, TypeError) as error:
            raise not_written_by("plan", where, repr(error)) from error
        counts = [layers, *removed, *(count for change in changes if change for count in (change.before, change.after))]
        if any(type(count) is not int for count in counts):
            raise not_written_by("plan", where, f"counts {counts}")
        compared = data.get("compared")
        if not (compared is None or (isinstance(compared, dict) and {*map(type, compared.values())} <= {int, float})):
            raise not_written_by("plan", where, f"compared {compared!r}")
        check_removal(removed, layers, where=where)
        parameters, weights = changes
        return cls(layers, removed, strategy, parameters, weights, compared, str(data.get("compared_by", "")))
