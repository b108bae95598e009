"""The settings of a trial in words: what varies over a study is said beside every number, what does not is said once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shortstack.machine.formats import counted
from shortstack.runs.records import ONE_SHOT

FACTORS = ("model", "drop", "metric", "calibration", "strategy", "repair", "heal", "data")
PLAIN = {  # what the levels are called at which a setting does without
    "drop": "named layers",
    "calibration": "none",
    "strategy": ONE_SHOT,
    "repair": "no repair",
    "heal": "not healed",
    "data": "none",
}
DATA = ("data", "max_samples")  # of healing's settings, those that are a factor of their own
PATHS = ("/", "./", "../", "~/", "$")  # what a path begins with
NAMES = ("method", "text", "source", "data")


def factors(all_settings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each trial's factors in words, without the seed; what healing learns from is a factor of its own.

    >>> heal = {"name": "last3", "method": "partial", "last": 3, "data": "pydoc"}
    >>> factors([{"model": "demo", "drop": "25%", "metric": "bi", "heal": heal, "seed": 1}])
    ... # doctest: +NORMALIZE_WHITESPACE
    [{'model': 'demo', 'drop': '25%', 'metric': 'bi', 'calibration': 'none', 'strategy': 'one-shot',
      'repair': 'no repair', 'heal': 'last3', 'data': 'pydoc'}]
    """
    all_settings = shortened(all_settings)
    healings = healing_names([heal for each in all_settings if isinstance(heal := each.get("heal"), Mapping)])
    repairs = {json.dumps(each["repair"], sort_keys=True) for each in all_settings if each.get("repair")}
    return [_factors(settings, healings, one_repair=len(repairs) == 1) for settings in all_settings]


def shortened(all_settings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The settings of all trials with paths in short.

    >>> shortened([{"data": "$DATA/c4.jsonl", "drop": 8}])
    [{'data': 'c4.jsonl', 'drop': 8}]
    """
    short = short_paths(_texts(all_settings))

    def change(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [change(item) for item in value]
        return short[value] if isinstance(value, str) else value

    return [change(settings) for settings in all_settings]


def _texts(value: Any) -> Iterator[str]:
    """Every text in settings, however deep it is."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _factors(settings: Mapping[str, Any], healings: Mapping[str, str], *, one_repair: bool) -> dict[str, str]:
    levels = {name: value for name, value in settings.items() if name != "seed"}
    heal, repair = levels.get("heal"), levels.get("repair")
    if isinstance(heal, Mapping):
        levels["heal"] = healings[_kind(heal)]
        levels["data"] = {key: heal[key] for key in DATA if heal.get(key) is not None}
    if repair:
        levels["repair"] = "repaired" if one_repair or repair is True else f"repaired on {words(repair)}"
    first = {name: words(levels.pop(name, None), PLAIN.get(name, "none")) for name in FACTORS}
    return first | {name: words(value) for name, value in sorted(levels.items())}


def healing_names(heals: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A word for each way to heal, whatever it learns from: its name in the study, where it has one to itself.

    Otherwise its method, with those options that not all ways have alike.
    """
    kinds = {_kind(heal): _options(heal) for heal in heals}
    names = {kind: {str(heal.get("name") or "") for heal in heals if _kind(heal) == kind} for kind in kinds}
    uses = Counter(name for some in names.values() for name in some)
    every = {key for options in kinds.values() for key in options}
    differ = {key for key in every if len({json.dumps(options.get(key)) for options in kinds.values()}) > 1}
    labels = {}
    for kind, options in kinds.items():
        name, *others = names[kind]
        telling = {key: value for key, value in options.items() if key in ("method", *differ)}
        labels[kind] = name if name and not others and uses[name] == 1 else words(telling, "healed")
    return labels


def _options(heal: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in heal.items() if key not in (*DATA, "name")}


def _kind(heal: Mapping[str, Any]) -> str:
    return json.dumps(_options(heal), sort_keys=True)


def words(value: Any, none: str = "none") -> str:
    """A setting in words.

    >>> words({"text": "pydoc", "samples": 10, "length": 128}), words({"method": "lora", "r": 8}), words([1, 4, 8])
    ('pydoc 10 x 128', 'lora (r 8)', '1:4:8')
    """
    if value is None or value is False or value in ("none", {}, []):
        return none
    if value is True:
        return "yes"
    if isinstance(value, Mapping):
        return _mapping_words({key: item for key, item in value.items() if item is not None})
    if isinstance(value, list | tuple):
        return ":".join(words(item) for item in value)
    return str(value)


def _mapping_words(value: Mapping[str, Any]) -> str:
    name = next((name for name in NAMES if name in value), None)
    windows = f"{value['samples']} x {value['length']}" if {"samples", "length"} <= value.keys() else ""
    spoken = {name, *(("samples", "length") if windows else ())}
    others = ", ".join(_option_words(key.replace("_", " "), item) for key, item in value.items() if key not in spoken)
    said = " ".join(filter(None, (str(value[name]) if name else "", windows)))
    return f"{said} ({others})" if said and others else said or others


def _option_words(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {words(value)}"


def short_paths(names: Iterable[str]) -> dict[str, str]:
    """Names in short: as many last parts of a path as tell it from the others; any other name as it is.

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


def said(factors_of_trial: Mapping[str, str], name: str) -> str:
    """A factor's level as a label says it; empty where another factor says it.

    >>> said({"drop": "8"}, "drop"), said({"drop": "25%"}, "drop"), said({"metric": "reverse"}, "metric")
    ('8 layers', '25% of layers', 'reverse order')
    >>> said({"drop": "named layers", "layers": "2-3"}, "drop"), said({"layers": "2-3"}, "layers")
    ('', 'layers 2-3')
    """
    level = factors_of_trial.get(name, "")
    if name == "drop" and level == PLAIN["drop"] and factors_of_trial.get("layers", "none") != "none":
        return ""
    if name == "drop" and level.isdigit():
        return counted(int(level), "layer")
    forms = {
        "drop": "{} of layers" if level.endswith("%") else "{}",
        "layers": "layers {}" if level[:1].isdigit() else "{}",
    }
    return "reverse order" if (name, level) == ("metric", "reverse") else forms.get(name, "{}").format(level)


def varying(all_factors: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """The factors with more than one level, and their levels in the order in which they come."""
    levels: dict[str, dict[str, None]] = {}
    for factors_of_trial in all_factors:
        for name, level in factors_of_trial.items():
            levels.setdefault(name, {})[level] = None
    return {name: list(some) for name, some in levels.items() if len(some) > 1}
