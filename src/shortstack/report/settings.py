"""The settings of a trial in words: what varies over a study is said beside every number, what does not is said once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FACTORS = ("model", "drop", "metric", "calibration", "strategy", "repair", "heal", "data")
NONE = {
    "calibration": "none",
    "strategy": "one-shot",
    "repair": "no repair",
    "heal": "not healed",
    "data": "none",
}
DATA = ("data", "max_samples")  # of healing's settings, those that are a factor of their own
NAMES = ("name", "method", "source", "strategy", "kind", "model", "data")


def factors(settings: Mapping[str, Any]) -> dict[str, str]:
    """Each factor's level in words, without the seed; what healing learns from is a factor of its own.

    >>> factors({"model": "demo", "drop": "25%", "heal": {"method": "partial", "last": 3, "data": "pydoc"}, "seed": 1})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'model': 'demo', 'drop': '25%', 'metric': 'none', 'calibration': 'none', 'strategy': 'one-shot',
     'repair': 'no repair', 'heal': 'partial (last 3)', 'data': 'pydoc'}
    """
    found = dict(settings)
    found.pop("seed", None)
    heal = found.get("heal")
    if isinstance(heal, Mapping):
        found["heal"] = {key: value for key, value in heal.items() if key not in DATA}
        if heal.get("data") is not None:
            found["data"] = {key: heal[key] for key in DATA if heal.get(key) is not None}
    known = {name: words(found.pop(name, None), NONE.get(name, "none")) for name in FACTORS}
    known["repair"] = "repaired" if known["repair"] == "yes" else known["repair"]
    return known | {name: words(value, "none") for name, value in sorted(found.items())}


def words(value: Any, none: str = "none") -> str:
    """A setting in words.

    >>> words({"source": "pydoc", "samples": 10, "length": 128}), words({"method": "lora", "r": 8}), words([1, 4, 8])
    ('pydoc 10 x 128', 'lora (r 8)', '1:4:8')
    """
    if value is None or value is False or value in ("none", {}, []):
        return none
    if value is True:
        return "yes"
    if isinstance(value, Mapping):
        return _of_mapping({key: item for key, item in value.items() if item is not None})
    if isinstance(value, list | tuple):
        return ":".join(words(item) for item in value)
    return str(value)


def _of_mapping(value: Mapping[str, Any]) -> str:
    name = next((name for name in NAMES if name in value), None)
    windows = f" {value['samples']} x {value['length']}" if {"samples", "length"} <= value.keys() else ""
    said = {name, *(("samples", "length") if windows else ())}
    others = ", ".join(_named(key, item) for key, item in value.items() if key not in said)
    if name is None:
        return windows.strip() + others
    return f"{value[name]}{windows}" + (f" ({others})" if others else "")


def brief(name: str, length: int = 40) -> str:
    """The beginning and the end of a long name.

    >>> brief("a" * 30 + "b" * 30, 20)
    'aaaaaaaaaaaa…bbbbbbb'
    """
    if len(name) <= length:
        return name
    tail = (length - 1) * 2 // 5
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def _named(key: str, value: Any) -> str:
    name = key.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {words(value)}"


def varying(all_factors: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """The factors with more than one level, and their levels in the order in which they come."""
    levels: dict[str, dict[str, None]] = {}
    for found in all_factors:
        for name, level in found.items():
            levels.setdefault(name, {})[level] = None
    return {name: list(known) for name, known in levels.items() if len(known) > 1}
