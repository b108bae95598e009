"""The words of the shortstack command that does what a step does, for people who want to repeat one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortstack.healing.options import option_defaults
from shortstack.planning.layer_sets import show_layers
from shortstack.study.grid import Judging, Speeds

Places = Mapping[str, str]  # what a step reads -> its path or the model's name


def score(arguments: Mapping[str, Any], places: Places) -> list[Any]:
    """Score, and save what was found."""
    window = _options({"window": arguments["window"]})
    metrics = ",".join(arguments["metrics"])
    return ["score", *_model(places["model"]), "--metric", metrics, *window, *_looking(arguments), "-o", "scores.json"]


def plan(arguments: Mapping[str, Any], places: Places) -> list[Any]:
    """Plan by scores, by measuring, or by name."""
    how: list[Any] = ["--layers", arguments["layers"].replace(" ", "")] if arguments["layers"] else []
    if not how:
        how = ["--search"] if arguments["metric"] is None else ["--metric", arguments["metric"]]
        how += ["--drop", arguments["drop"], *_options({"block": arguments["block"], "step": arguments["step"]})]
    looking = _looking(arguments) if "seed" in arguments and not arguments["layers"] else []
    where = [f"{places['score']}/scores.json"] if "score" in places else _model(places["model"])
    return ["plan", *where, *how, *looking, "-o", "plan.json"]


def prune(arguments: Mapping[str, Any], places: Places) -> list[Any]:
    """Cut the layers, and repair where the step did."""
    repair = arguments["repair"]
    options = {"repair": True, "repair-samples": repair["samples"]} if repair else {}
    words = [*_options(options), *(_looking({**repair, "samples": None}) if repair else [])]
    layers = show_layers(arguments["removed"]).replace(" ", "")
    return ["prune", *_model(places["model"]), "--layers", layers, *words, "-o", "pruned"]


def heal(arguments: Mapping[str, Any], places: Places) -> list[Any]:
    """Heal with the options that are not the usual ones."""
    usual = option_defaults()
    changed = {name: value for name, value in arguments.items() if name in usual and value != usual[name]}
    options = {name.replace("_", "-"): value for name, value in changed.items()} | {"teacher": places.get("teacher")}
    place = places.get("checkpoint") or places["model"]
    return ["heal", *_model(place), *_options(options), "-o", "healed"]


def turns(arguments: Mapping[str, Any], places: Places) -> list[Any]:
    """Prune and heal in turns."""
    turning = {name: arguments["turns"].get(name) for name in ("drop", "step", "metric", "text", "samples", "length")}
    return [*heal(arguments, places)[:-2], *_options(turning), "-o", "healed"]


def evaluate(arguments: Mapping[str, Any], places: Places) -> list[Any]:
    """Measure as the study does."""
    usual = Judging().model_dump(mode="json")
    changed = {
        name: arguments[name] for name in arguments if name == "perplexity" or arguments[name] != usual.get(name)
    }
    checked = {True: ["--collapse-check"], False: ["--no-collapse-check"], None: []}[changed.pop("collapse", None)]
    probed = ["--probes"] if "probe_items" in changed else []
    return ["evaluate", *_model(places["checkpoint"]), *_compute(changed), *probed, *checked]


def profile(arguments: Mapping[str, Any], places: Places) -> list[Any]:
    """Measure speeds as the study does."""
    renamed = {"batch-size": arguments["batch_sizes"], "prompt": arguments["prompt"]}
    assert Speeds.model_fields.keys() <= arguments.keys()  # noqa: S101  all of them are here
    renamed |= {"new-tokens": arguments["new_tokens"], "dtype": arguments["dtype"]}
    return ["profile", *_model(places["checkpoint"]), *_compute(renamed)]


def _model(name: str) -> list[str]:
    """A model as the command line names it: a hub model's revision is an option."""
    model, _, revision = name.partition("@")
    return [model, *(["--revision", revision] if revision else [])]


def _looking(arguments: Mapping[str, Any]) -> list[str]:
    """The text that is looked at, the seed, and what is computed in."""
    names = ("text", "samples", "length", "seed", "dtype")
    return _compute({name: arguments[name] for name in names if name in arguments})


def _compute(values: Mapping[str, Any]) -> list[str]:
    return _options(
        {name.replace("_", "-"): value for name, value in values.items() if (name, value) != ("dtype", "auto")}
    )


def _options(values: Mapping[str, Any]) -> list[str]:
    """Options from their values: none where there is no value, lists with commas."""
    words: list[str] = []
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif value is False:
            words += [f"--no-{name}"] if name == "head" else []
        elif value is not None and value != []:
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words
