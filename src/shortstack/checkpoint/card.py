"""The model card of what shortstack writes: README.md, from the record, filled into a template of the package."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shortstack.checkpoint.file_names import CARD, DEMO_HUB_ID, HUB_ID, is_demo
from shortstack.machine.formats import number, option_words, show_layers
from shortstack.machine.tables import Cell

LICENCE = ("license", "license_name", "license_link")
MOST_BYTES = 1 << 20  # of a card that is read for its metadata
TAGS = ("layer-pruning", "layer-pruned", "depth-pruning", "shortstack")
SEES = "ForConditionalGeneration"  # ends the class of models that see images, which have a processor


@dataclass(frozen=True)
class CardContent:
    """The content of a model card apart from the checkpoint's record.

    verdict: whether to keep it; reasons: the numbers that say so. facts: sizes and the like, by what they are and by model.
    measured: the JSON of evaluations, by model. answers: of the models to prompts. why: these layers went; compared: the
    cuts that were compared, by their loss.
    """

    verdict: str = ""
    reasons: Sequence[str] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answers: Sequence[Mapping[str, str]] = ()
    why: str = ""
    compared: Mapping[str, float] = field(default_factory=dict)
    licence: Mapping[str, str] = field(default_factory=dict)


def model_card(name: str, record: Mapping[str, Any], content: CardContent | None = None) -> str:
    """Write a card, Markdown with the metadata that hubs read. record: what shortstack.json says.

    What comes from outside, such as a model's name, is neither HTML nor Markdown. It names no path of this machine.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=inert,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    content, steps = content or CardContent(), _steps(record)
    facts = {
        "metadata": card_metadata(record, content.licence),
        "name": name,
        "base": base_model(record),
        "source": base_model(record) or "the model that it was made from",
        "sees": _sees(record),
        "made": [_sentence(step) for step in steps],
        "commands": _commands(steps, name),
        "version": record["versions"]["shortstack"],
        "rows": _rows(content.measured),
        "content": content,
    }
    text = environment.get_template("card.md.j2").render(facts)
    return text.replace("&#39;", "'").replace("&#34;", '"')  # which mean nothing in Markdown outside of tags


def inert(value: Any) -> Any:
    """Escape text for Markdown so that nothing is markup: no link, no emphasis, no cell of a table, no other line.

    >>> print(inert("[a](//b) www.c https://d\\n# e"))
    \\[a\\](//b) www\\.c https\\://d # e
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):  # a number, or what the template calls safe
        return value
    line = "".join(character if character.isprintable() else " " for character in value)
    return re.sub(r"([\\`*_\[\]|~@$]|:(?=//)|(?<=www)\.)", r"\\\1", line)


def card_metadata(record: Mapping[str, Any], licence: Mapping[str, str]) -> str:
    """Write the head of a card, in YAML, as huggingface_hub does."""
    from huggingface_hub import ModelCardData

    healings = [step["healing"]["config"]["data"] for step in _steps(record) if step.get("healing")]
    names = {name.partition(":")[0] for data in healings for name in _sources(data)}
    sets = sorted(filter(HUB_ID.fullmatch, names))
    data = ModelCardData(
        base_model=base_model(record),
        library_name="transformers",
        pipeline_tag="image-text-to-text" if _sees(record) else "text-generation",
        tags=list(TAGS),
        datasets=sets or None,
        base_model_relation="finetune" if base_model(record) else None,
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    return f"{data.to_yaml()}\n"


def base_model(record: Mapping[str, Any]) -> str | None:
    """Return the hub's name of the model that was cut; None where that is a folder of somebody's own, which has no revision,
    or was in memory, where it may have been trained since it was loaded.

    >>> base_model({"source": {"id": "demo"}}), base_model({"source": {"id": "models/llama"}})
    ('HuggingFaceTB/SmolLM2-135M-Instruct', None)
    """
    source = _steps(record)[0]["source"]
    first = str(source["id"])
    if source.get("in_memory"):
        return None
    if is_demo(first):
        return DEMO_HUB_ID
    return first if HUB_ID.fullmatch(first) and source.get("revision") else None


def _sees(record: Mapping[str, Any]) -> bool:
    return str(record.get("architecture")).endswith(SEES)


def licence_of(directory: Path) -> dict[str, str]:
    """Return the licence metadata of the card in a checkpoint's directory; empty if there is no card or no licence in it."""
    from huggingface_hub import metadata_load

    card = directory / CARD
    if not card.is_file() or card.stat().st_size > MOST_BYTES:
        return {}
    try:
        said = metadata_load(card) or {}
    except (ValueError, yaml.YAMLError):  # a card that hubs could not read, either: it says nothing
        return {}
    return {name: said[name] for name in LICENCE if isinstance(said.get(name), str)}


def _sources(data: Sequence[str]) -> list[str]:
    return [name.partition("=")[0] for name in data]


def _steps(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the records of all that was done to the first model, in that order."""
    steps = [record]
    while steps[-1].get("origin"):
        steps.append(steps[-1]["origin"])
    return steps[::-1]


def _sentence(step: Mapping[str, Any]) -> str:
    plan, healing = step.get("plan"), step.get("healing")
    if plan and not healing:
        refitted = "; kept layers were refitted in closed form" if (step.get("repair") or {}).get("kept") else ""
        were = "was" if len(plan["removed"]) == 1 else "were"
        gone = f"{len(plan['removed'])} of {plan['layers']} layers {were} removed (numbered from 0: "
        return f"{gone}{show_layers(plan['removed'])}){refitted}."
    if healing:
        taught = "the output of the base model" if healing["config"]["loss"] == "distill" else "the text"
        data = ", ".join(_sources(healing["config"]["data"]))
        how = f"by {healing['config']['method']} on {healing['samples']:,} samples of {data}"
        if (healing.get("history") or {}).get("best") == 0:
            return f"Training the remaining layers {how} lowered no held-out loss: their weights are as they were before it."
        return f"The remaining layers were trained {how}, to reproduce {taught}."
    return f"It went through shortstack {step['verb']}."


def _commands(steps: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Write the commands that do the steps, with models named by what they are, since folders have other names elsewhere."""
    named = {"prune": "pruned", "heal": "healed"}
    made = [named.get(step["verb"], "model") for step in steps]
    outs = [f"{out}-{made[: at + 1].count(out)}" if made.count(out) > 1 else out for at, out in enumerate(made)]
    models = [base_model(steps[0]) or "MODEL", *outs]
    return [_command(*each) for each in zip(steps, models, [*outs[:-1], name], strict=False)]


def _command(step: Mapping[str, Any], model: str, out: str) -> str:
    words = ["shortstack", step["verb"], model]
    healing, plan = step.get("healing"), step.get("plan")
    if plan and not healing:
        layers, repair = show_layers(plan["removed"]).replace(" ", ""), step.get("repair") or {}
        words += _options({"layers": layers, **(_refitted(repair["tokens"]) if repair.get("kept") else {})})
    if healing:
        options = dict(healing["config"])
        words += [word for name in options.pop("data") for word in option_words({"data": name})]
        words += _options(options)
    return " ".join(shlex.join([*words, "-o", out]).splitlines())


def _refitted(tokens: Mapping[str, Any]) -> dict[str, Any]:
    weights = {kind["source"]: kind["weight"] for kind in tokens.get("kinds") or ()} or tokens["source"]
    how = {"repair": True, "calibration_data": weights, "repair_samples": tokens["samples"]}
    return {**how, "seq_length": tokens["length"], "seed": tokens["seed"] or None}


def _options(values: Mapping[str, Any]) -> list[str]:
    return option_words({name: value for name, value in values.items() if value is not False})


def _rows(measured: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    cells: dict[str, dict[str, str]] = {}
    for model, evaluation in measured.items():
        for name, cell in _cells(evaluation):
            cells.setdefault(name, {})[model] = cell
    return [(name, [by_model.get(model, "") for model in measured]) for name, by_model in cells.items()]


def _cells(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List an evaluation's perplexities, tasks and probes with their standard errors and how many items they had."""
    texts, tasks, probes = (evaluation.get(part) or {} for part in ("perplexity", "tasks", "probes"))
    return [
        *((f"perplexity on {name}", _perplexity(result)) for name, result in texts.items()),
        *((f"{name}, {result['metric']}", _score(result)) for name, result in tasks.items()),
        *((f"probe {name}", _score(result)) for name, result in probes.items()),
    ]


def _perplexity(result: Mapping[str, Any]) -> str:
    """Write a perplexity with its error, which is the perplexity times the error of the loss."""
    value = math.inf if result["value"] is None else result["value"]
    note = f"({result['tokens']:,} tokens)" if result.get("tokens") else ""
    return Cell(value, "perplexity", value * (result.get("loss_stderr") or math.nan), note).said


def _score(result: Mapping[str, Any]) -> str:
    return Cell(result["value"], "score", result.get("stderr"), f"(n = {result['n']})").said
