"""The settings of a trial in words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
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
    healings = _healing_names(heals)
    repairs = {json.dumps(settings["repair"], sort_keys=True) for settings in shortened if settings.get("repair")}
    amounts = Counter(source for source, _ in {(str(heal.get("data")), heal.get("max_samples")) for heal in heals})
    several = {source for source, amount in amounts.items() if amount > 1}
    return [_factors(settings, healings, several, one_repair=len(repairs) == 1) for settings in shortened]


def _factors(
    settings: Mapping[str, Any], healings: Mapping[str, str], several: Collection[str], *, one_repair: bool
) -> dict[str, str]:
    """Put a trial's factors in words. several: the data that trials take different amounts of."""
    levels = {name: value for name, value in settings.items() if name != "seed"}
    heal, repair, per_round = levels.get("heal"), levels.get("repair"), levels.pop("layers_per_round", None)
    levels["metric"] = _selection(levels.pop("metric", None), levels.pop("strategy", None), levels.pop("layers", None))
    levels["rounds"] = per_round and f"{per_round} at a time"
    if isinstance(heal, Mapping):
        levels["heal"] = healings[_kind(heal)]
        keys = DATA if str(heal.get("data")) in several else DATA[:1]
        levels["data"] = {key: heal[key] for key in keys if heal.get(key) is not None}
    if repair:
        levels["repair"] = "repaired" if one_repair else f"repaired on {words(repair)}"
    first = {name: words(levels.pop(name, None), PLAIN.get(name, "none")) for name in FACTORS}
    return first | {name: words(value) for name, value in sorted(levels.items())}


def _selection(metric: str | None, strategy: str | None, layers: str | None) -> str:
    """Return how layers are selected."""
    return f"layers {layers}" if layers else " ".join(filter(None, (metric, strategy))) or "ppl"


def _healing_names(heals: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Find a word for each way to heal, whatever it learns from: its name in the study, where it has one to itself.

    Otherwise its method, with those options that not all ways of that method have alike.
    """
    kinds = {_kind(heal): _options(heal) for heal in heals}
    names = {kind: {heal.get("name") or "" for heal in heals if _kind(heal) == kind} for kind in kinds}
    uses = Counter(name for of_kind in names.values() for name in of_kind)
    every = {key for options in kinds.values() for key in options}
    labels = {}
    for kind, options in kinds.items():
        name, *others = names[kind]
        peers = [other for other in kinds.values() if other.get("method") == options.get("method")]
        differ = {key for key in every if len({json.dumps(peer.get(key)) for peer in peers}) > 1}
        telling = {key: value for key, value in options.items() if key in ("method", *differ)}
        labels[kind] = name if name and not others and uses[name] == 1 else words(telling, "healed")
    return labels


def _options(heal: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in heal.items() if key not in (*DATA, "name")}


def _kind(heal: Mapping[str, Any]) -> str:
    return json.dumps(_options(heal), sort_keys=True)


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
    """Shorten paths, alone or with commas between, to as many last parts as tell them from the others; others stay.

    >>> short_paths(["/a/b/text.txt", "/a/c/text.txt", "/a/model", "org/name"])
    {'/a/b/text.txt': 'b/text.txt', '/a/c/text.txt': 'c/text.txt', '/a/model': 'model', 'org/name': 'org/name'}
    >>> short_paths(["/a/one.json,/a/two.json"])
    {'/a/one.json,/a/two.json': 'one.json,two.json'}
    """
    names = list(names)
    shorter = dict.fromkeys((part for name in names for part in name.split(",")), "")
    for name in shorter:
        parts = name.rstrip("/").split("/") if name.startswith(PATHS) else [name]
        ends = ("/".join(parts[-amount:]) for amount in range(1, len(parts)))
        others = [f"/{other}".rstrip("/") for other in shorter if other != name]
        shorter[name] = next((end for end in ends if not any(other.endswith(f"/{end}") for other in others)), name)
    return {name: ",".join(shorter[part] for part in name.split(",")) for name in names}


def said(levels: Mapping[str, str], name: str) -> str:
    """Put a factor's level as a label says it; empty where another factor says it.

    >>> said({"drop": "8"}, "drop"), said({"drop": "25%"}, "drop"), said({"drop": "named layers"}, "drop")
    ('8 layers', '25% of layers', '')
    """
    level = levels.get(name, "")
    if name == "drop":
        if level == PLAIN["drop"]:
            return ""
        return counted(int(level), "layer") if level.isdigit() else f"{level} of layers"
    return level
