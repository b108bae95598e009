"""Plans as mergekit's passthrough slices, and slices of one model as plans. Its ranges end before their last number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from shortstack.errors import DataError, PlanError
from shortstack.machine.yamlfile import syntax_of, text_of
from shortstack.planning.plans import Plan

METHOD = "passthrough"
FIX = "write slices of one model with ascending layer_range, merged by passthrough"


def to_mergekit(plan: Plan, model: str) -> str:
    """Write the YAML that makes mergekit copy the layers that a plan keeps.

    It names no dtype: every tensor stays in its own.

    >>> print(to_mergekit(Plan(8, (3, 4), "layers"), "org/name"), end="")
    slices:
    - sources:
      - model: org/name
        layer_range: [0, 3]
    - sources:
      - model: org/name
        layer_range: [5, 8]
    merge_method: passthrough
    """
    name = str(yaml.safe_dump(model, width=10**6)).removesuffix("\n").removesuffix("\n...")
    slices = "".join(
        f"- sources:\n  - model: {name}\n    layer_range: [{before + 1}, {end}]\n"
        for before, end in pairwise([-1, *sorted(plan.removed), plan.layers])
        if before + 1 < end
    )
    return f"slices:\n{slices}merge_method: {METHOD}\n"


def read_mergekit(path: str | Path) -> tuple[int, ...]:
    """Return the layers that slices of one model keep, ascending."""
    text = text_of(path)
    with syntax_of(str(path)):
        read = yaml.safe_load(text)
    ranges = _ranges(read, path)
    crossing = next((pair for pair in pairwise(ranges) if pair[1][0] < pair[0][1]), None)
    if crossing:
        actual = f"{list(crossing[0])} before {list(crossing[1])}"
        raise DataError(actual, expected="each layer once, in their order", fix=FIX, where=path)
    return tuple(layer for start, end in ranges for layer in range(start, end))


def plan_of_kept(kept: Sequence[int], layers: int, *, where: object) -> Plan:
    """Return the plan that keeps these of a model's layers."""
    if max(kept) >= layers or len(kept) == layers:
        expected, actual = f"some of the model's {layers} layers", f"layers up to {max(kept)}, {len(kept)} in all"
        raise PlanError(actual, expected=expected, fix="name the model that the slices are of", where=where)
    return Plan(layers, tuple(layer for layer in range(layers) if layer not in set(kept)), "slices of mergekit")


def _ranges(read: Any, path: object) -> list[tuple[int, int]]:
    if not isinstance(read, Mapping) or not isinstance(read.get("slices"), list) or not read["slices"]:
        raise DataError(str(read or "nothing")[:80], expected="slices, as mergekit has them", fix=FIX, where=path)
    if read.get("merge_method", METHOD) != METHOD:
        actual = f"merge_method {read['merge_method']}"
        raise DataError(actual, expected=f"merge_method {METHOD}", fix=FIX, where=path)
    if read.get("parameters"):
        raise DataError("parameters", expected="layers as they are", fix=FIX, where=path)
    sources = [_source(part, path) for part in read["slices"]]
    models = sorted({model for model, _ in sources})
    if len(models) > 1:
        raise DataError(", ".join(models), expected="slices of one model", fix=FIX, where=path)
    return [span for _, span in sources]


def _source(part: Any, path: object) -> tuple[str, tuple[int, int]]:
    sources = part.get("sources") if isinstance(part, Mapping) else None
    one = sources[0] if isinstance(sources, list) and len(sources) == 1 else None
    source: Mapping[str, Any] = one if isinstance(one, Mapping) else {}
    if source.get("parameters") or (isinstance(part, Mapping) and part.get("parameters")):
        raise DataError(f"parameters in {str(part)[:60]}", expected="layers as they are", fix=FIX, where=path)
    span: Any = source.get("layer_range")
    whole = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
    if not whole or not 0 <= span[0] < span[1]:
        expected = "a slice with one source and a layer_range like [0, 12]"
        raise DataError(str(part)[:80], expected=expected, fix=FIX, where=path)
    return str(source.get("model", "")), (span[0], span[1])
