"""The metadata of a GGUF model as a question of depth: how it must read without some layers, or why it cannot; pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shortstack.architecture.gguf_rules import (
    DENSE_FIRST,
    INTERVALS,
    NOT_BY_LAYER,
    PER_LAYER,
    RULES,
    UNRULED,
    Fields,
)
from shortstack.checkpoint.gguf_file import FLOAT32, Entry, GgufFile
from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.machine.formats import show_layers
from shortstack.planning import Plan
from shortstack.planning.exactness import nearest

DEPTH = "block_count"
EXTRA = "nextn_predict_layers"  # blocks behind the last layer that predict further tokens
CHECKED = "where transformers reads the file, that cut is of dequantised weights, and checked"


@dataclass(frozen=True)
class GgufDepth:
    """The layers of a GGUF model. where: its file, in errors."""

    architecture: str
    entries: Mapping[str, Entry]
    where: Path

    @classmethod
    def of(cls, model: GgufFile) -> GgufDepth:
        """Read what depends on depth in a model's metadata.

        Raises:
            CheckpointError: the metadata does not say how many layers there are, or a layer has no tensors.
            ArchitectureError: nobody knows what depends on depth.
        """
        depth = cls(model.architecture, model.entries, model.parts[0])
        depth.check_known()
        depth.check_whole(model)
        return depth

    @cached_property
    def fields(self) -> Fields:
        """Values of the architecture, by their names without it."""
        prefix = f"{self.architecture}."
        return {
            name.removeprefix(prefix): entry.value for name, entry in self.entries.items() if name.startswith(prefix)
        }

    @property
    def layers(self) -> int:
        """Decoder layers; blocks behind them that predict further tokens are none."""
        return int(self.fields[DEPTH]) - int(self.fields.get(EXTRA, 0))

    def without(self, kept: Sequence[int]) -> dict[str, Entry]:
        """Return all metadata of the model of these layers alone, in the source's order."""
        changed = self._changed(kept)
        if changed is None:
            raise self._refused(kept)
        return {**self.entries, **{f"{self.architecture}.{name}": entry for name, entry in changed.items()}}

    def is_exact(self, plan: Plan) -> bool:
        return self._changed(plan.kept) is not None

    def check_known(self) -> None:
        """Refuse a file of which it is not known what depends on a layer's number."""
        if self.architecture not in RULES:
            raise ArchitectureError(
                self.architecture,
                expected="an architecture of which it is known what depends on a layer's number, such as llama",
                fix=f"cut the checkpoint that the file was made of, and convert that; or write a directory: {CHECKED}",
                where=self.where,
            )
        fields, fix = self.fields, f"write a directory: {CHECKED}"
        depth = fields.get(DEPTH)
        if type(depth) is not int or self.layers < 1:
            expected = f"{self.architecture}.{DEPTH} as a number of layers"
            raise CheckpointError(depth, expected=expected, fix="download it again", where=self.where)
        unruled = [name for name in UNRULED if fields.get(name)]
        arrays = [name for name in fields if isinstance(fields[name], list) and len(fields[name]) == depth]
        strange = [*unruled, *(name for name in arrays if name not in PER_LAYER | NOT_BY_LAYER)]
        if strange:
            expected = f"metadata of which it is known how it depends on the {depth} layers"
            raise ArchitectureError(f"{self.architecture}.{strange[0]}", expected=expected, fix=fix, where=self.where)

    def check_whole(self, model: GgufFile) -> None:
        """Refuse a file that lacks a layer's tensors."""
        missing = sorted(set(range(self.layers)) - {tensor.block for tensor in model.tensors})
        if missing:
            expected, actual = f"tensors of layers 0 to {self.layers - 1}", f"none of layer {missing[0]}"
            raise CheckpointError(actual, expected=expected, fix="download all of it again", where=self.where)

    def _kinds(self, fields: Fields, depth: int) -> list[tuple[Any, ...]]:
        return [tuple(rule(layer, depth, fields) for rule in RULES[self.architecture]) for layer in range(depth)]

    def _changed(self, kept: Sequence[int]) -> dict[str, Entry] | None:
        """Return the metadata that the shorter model needs changed; None if some layer would be of another kind in any
        case.
        """
        before = self._kinds(self.fields, self.layers)
        sliced = self._sliced(kept)
        fields = {**self.fields, **{name: entry.value for name, entry in sliced.items()}}
        wanted = [before[layer] for layer in kept]
        for period in self._periods(fields, len(kept)):
            if self._kinds({**fields, **period}, len(kept)) == wanted:
                return {**sliced, **{name: self._number(name, value) for name, value in period.items()}}
        return None

    def _sliced(self, kept: Sequence[int]) -> dict[str, Entry]:
        fields, entries = self.fields, {DEPTH: self._number(DEPTH, len(kept))}
        for name in sorted(PER_LAYER & fields.keys()):
            entry = self.entries[f"{self.architecture}.{name}"]
            if entry.of is not None and len(entry.value) >= self.layers:
                entries[name] = Entry.array([entry.value[layer] for layer in kept], entry.of)
        if DENSE_FIRST in fields:
            entries[DENSE_FIRST] = self._number(DENSE_FIRST, sum(layer < fields[DENSE_FIRST] for layer in kept))
        if EXTRA in fields:
            entries[EXTRA] = self._number(EXTRA, 0)
        if self.architecture == "minicpm" and "residual_scale" not in fields:  # by depth, where none is written
            entries["residual_scale"] = Entry.number(1.4 / math.sqrt(self.layers), FLOAT32)
        return entries

    def _number(self, name: str, value: int) -> Entry:
        return Entry.number(value, self.entries[f"{self.architecture}.{name}"].kind)

    def _periods(self, fields: Fields, depth: int) -> Iterator[dict[str, int]]:
        """Yield ways to set the intervals: as they are first, then all others of one of them."""
        yield {}
        for name in INTERVALS:
            if isinstance(fields.get(name), int):
                yield from ({name: period} for period in range(1, depth + 2))

    def _refused(self, kept: Sequence[int]) -> ArchitectureError:
        removed = tuple(layer for layer in range(self.layers) if layer not in kept)
        nearest_cut = nearest(Plan(self.layers, removed, "layers"), self.is_exact)
        layers = show_layers(nearest_cut.removed).replace(" ", "") if nearest_cut else ""
        return ArchitectureError(
            f"others, without layers {show_layers(removed)}",
            expected=f"kept layers of the same type: llama.cpp derives it from the number for {self.architecture}",
            fix=f"cut whole periods{'; the nearest exact cut: layers ' + layers if nearest_cut else ''}",
            where=self.where,
        )
