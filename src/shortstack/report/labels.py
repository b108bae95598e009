"""The settings of a trial in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shortstack.machine.formats import counted

FACTORS = ("model", "drop", "metric", "calibration", "rounds", "repair", "heal", "data")
PLAIN = {  # what the levels are called at which a setting does without
    "drop": "named layers",
    "calibration": "none",
    "rounds": "all at once",
    "repair": "no repair",
    "heal": "not healed",
    "data": "none",
}
DATA = ("data", "max_samples")  # of healing's settings, those that are a factor of their own
NAMES = ("name", "method", "text", "source", "data")
PATHS = ("/", "./", "../", "~/", "$")  # what a path begins with
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def factors(all_settings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Put each trial's factors in words, without the seed; what healing learns from is a factor of its own.

    >>> heal = {"name": "last3", "method": "partial", "last": 3, "data": "pydoc"}
    >>> factors([{"model": "demo", "drop": "25%", "metric": "bi", "heal": heal, "seed": 1}])
    ... # doctest: +NORMALIZE_WHITESPACE
    [{'model': 'demo', 'drop': '25%', 'metric': 'bi', 'calibration': 'none', 'rounds': 'all at once',
      'repair': 'no repair', 'heal': 'last3', 'data': 'pydoc'}]
    """
    text = json.dumps(all_settings)
    for name, short in short_paths(json.loads(quoted) for quoted in QUOTED.findall(text)).items():
        text = text.replace(json.dumps(name), json.dumps(short))
    shortened = json.loads(text)
    heals = [heal for settings in shortened if isinstance(heal := settings.get("heal"), Mapping)]
    return [_factors(settings, heals) for settings in shortened]


def _factors(settings: Mapping[str, Any], heals: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Put a trial's factors in words. heals: all ways to heal of the study."""
    levels = {name: value for name, value in settings.items() if name != "seed"}
    heal, repair, per_round = levels.get("heal"), levels.get("repair"), levels.pop("layers_per_round", None)
    levels["metric"] = _selection(levels.pop("metric", None), levels.pop("strategy", None), levels.pop("layers", None))
    levels["rounds"] = per_round and f"{per_round} at a time"
    if isinstance(heal, Mapping):
        amounts = {other.get("max_samples") for other in heals if other.get("data") == heal.get("data")}
        levels["heal"] = _healing(heal, heals)
        levels["data"] = {key: heal.get(key) for key in (DATA if len(amounts) > 1 else DATA[:1])}
    if repair:
        levels["repair"] = f"repaired on {words(repair)}"
    first = {name: words(levels.pop(name, None), PLAIN.get(name, "none")) for name in FACTORS}
    return first | {name: words(value) for name, value in sorted(levels.items())}


def _selection(metric: str | None, strategy: str | None, layers: str | None) -> str:
    """Return how layers are selected."""
    return f"layers {layers}" if layers else " ".join(filter(None, (metric, strategy))) or "ppl"


def _healing(heal: Mapping[str, Any], heals: Sequence[Mapping[str, Any]]) -> str:
    """Return a word for a way to heal, whatever its data: its name if it alone has it, else what tells it from others."""

    def options(heal: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in heal.items() if key not in (*DATA, "name")}

    own, name = options(heal), heal.get("name")
    if name and all((other.get("name") == name) == (options(other) == own) for other in heals):
        return str(name)
    peers = [options(other) for other in heals if other.get("method") == heal.get("method")]
    return words(
        {key: value for key, value in own.items() if key == "method" or any(peer.get(key) != value for peer in peers)},
        "healed",
    )


def words(value: Any, none: str = "none") -> str:
    """Put a setting in words.

    >>> words({"text": "pydoc", "samples": 10, "length": 128}), words({"method": "lora", "r": 8}), words([1, 4, 8])
    ('pydoc 10 x 128', 'lora (r 8)', '1:4:8')
    """
    if value is None or value is False or value in ("none", {}, []):
        return none
    if isinstance(value, list):
        return ":".join(words(item) for item in value)
    if not isinstance(value, Mapping):
        return "yes" if value is True else str(value)
    options = {key: item for key, item in value.items() if item is not None}
    said = [str(options.pop(name)) for name in NAMES if name in options][:1]
    if {"samples", "length"} <= options.keys():
        said.append(f"{options.pop('samples')} x {options.pop('length')}")
    others = ", ".join(_option(key.replace("_", " "), item) for key, item in options.items())
    return " ".join([*said, f"({others})" if said else others] if others else said)


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {words(value)}"


def short_paths(names: Iterable[str]) -> dict[str, str]:
    """Shorten paths to as many last parts as tell them from the others; others stay.

    >>> short_paths(["/a/b/text.txt", "/a/c/text.txt", "/a/model", "org/name"])
    {'/a/b/text.txt': 'b/text.txt', '/a/c/text.txt': 'c/text.txt', '/a/model': 'model', 'org/name': 'org/name'}
    """
    shorter = dict.fromkeys(names, "")
    for name in shorter:
        parts = name.rstrip("/").split("/") if name.startswith(PATHS) else [name]
        ends = ("/".join(parts[-amount:]) for amount in range(1, len(parts)))
        others = [f"/{other}".rstrip("/") for other in shorter if other != name]
        shorter[name] = next((end for end in ends if not any(other.endswith(f"/{end}") for other in others)), name)
    return shorter


def said(levels: Mapping[str, str], name: str) -> str:
    """Put a factor's level as a label says it; empty if another factor says it.

    >>> said({"drop": "8"}, "drop"), said({"drop": "25%"}, "drop"), said({"drop": "named layers"}, "drop")
    ('8 layers', '25% of layers', '')
    """
    level = levels.get(name, "")
    if name != "drop" or level == PLAIN["drop"]:
        return "" if name == "drop" else level
    return counted(int(level), "layer") if level.isdigit() else f"{level} of layers"
