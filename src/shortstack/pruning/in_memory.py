"""prune_layers(): a model in memory without some of its layers; those that stay are the very modules that were there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from shortstack.architecture.anatomy import Anatomy, shortened
from shortstack.architecture.config_fields import depth_axis
from shortstack.architecture.selfcheck import blueprint, check_cut, plain_attributes
from shortstack.errors import ArchitectureError, InputError
from shortstack.planning import Cut, plan_of

IN_MEMORY = Path("the model")  # in errors, where others have a directory
LOADED = "give what AutoModelForCausalLM.from_pretrained returns"
MERGE = "merge_and_unload() it first"


def prune_layers(model: nn.Module, plan: Cut) -> nn.Module:
    """Remove plan.removed from a loaded causal language model of transformers, in place; returns the same object.

    plan: also the layers to remove, [3, 5] or "3-5".

    Quantised layers (bitsandbytes), adapters of PEFT and accelerate's hooks stay on the layers that stay. The config, the
    numbers by which layers find their keys and values in the cache, and what else depends on depth become those of the
    shorter model: they are taken from one that the shortened config builds without weights, which is compared with the
    original first, as prune() does. Nothing is changed where that fails.

    >>> prune_layers(model, "20-27")  # doctest: +SKIP

    Raises:
        InputError: it is no causal language model of transformers, or adapters name layers by their numbers.
        PlanError: the plan is for a model of another depth.
        ArchitectureError: the cut cannot be expressed exactly, or needs tensors outside the layers to be cut.
    """
    live = _bare(model)
    raw = json.loads(live.config.to_json_string(use_diff=False))
    before, anatomy = blueprint(raw, IN_MEMORY)
    plan = plan_of(plan, anatomy.layers)
    _check(live, before, anatomy)
    _check_adapted(live.get_submodule(anatomy.layers_path))
    config = shortened(raw, before, anatomy, plan.kept, anatomy.layers_path)
    after, rebuilt = check_cut(config, before, anatomy, plan.kept, IN_MEMORY)
    _follow(live, before, after, (anatomy.layers_path, rebuilt.layers_path), plan.kept)
    _keep(live, anatomy.layers_path, plan.kept)
    _tell_configs(live.config, raw, config, anatomy.text_key)
    _renumber_devices(model, live, anatomy.layers_path, plan.kept)
    vars(live).pop("_cache", None)  # a static cache of generate(), which has a place for each layer
    return model


def _bare(model: nn.Module) -> PreTrainedModel:
    wrapped: Any = model
    bare = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(bare, PreTrainedModel):
        raise InputError(
            f"{type(model).__name__} is no causal language model of transformers; {LOADED}", option="model"
        )
    for name, adapter in getattr(model, "peft_config", {}).items():
        fields = ("layers_to_transform", "rank_pattern", "alpha_pattern", "layer_replication")
        if numbered := next((field for field in fields if getattr(adapter, field, None)), None):
            raise InputError(f"the adapter {name} names layers by number ({numbered}); {MERGE}", option="model")
    return bare


def _check(live: PreTrainedModel, before: PreTrainedModel, anatomy: Anatomy) -> None:
    if type(live).__name__ != type(before).__name__:
        message = f"the model is a {type(live).__name__}, not a {type(before).__name__} with its head"
        raise InputError(f"{message}; {LOADED}", option="model")
    if (layers := len(live.get_submodule(anatomy.layers_path))) != anatomy.layers:
        message = f"the model has {layers} layers, and its config says {anatomy.layers}; load it again"
        raise InputError(message, option="model")
    by_depth = next((name for name, _ in live.named_parameters() if depth_axis(name) is not None), None)
    if by_depth:
        raise ArchitectureError(f"{by_depth} has a part for each layer; prune the checkpoint on disk", option="model")


def _check_adapted(layers: Any) -> None:
    """Refuse an adapter in some of the layers that have such a module: PEFT would look for it by the old numbers."""
    modules = [dict(layer.named_modules()) for layer in layers]
    for name in sorted({name for of_layer in modules for name, module in of_layer.items() if _adapters(module)}):
        found = {number: _adapters(of_layer[name]) for number, of_layer in enumerate(modules) if name in of_layer}
        for adapter in sorted(frozenset[str]().union(*found.values())):
            without = [number for number, adapters in found.items() if adapter not in adapters]
            if without:
                message = f"the adapter {adapter} is in {name}, but not in layer {without[0]}; {MERGE}"
                raise InputError(message, option="model")


def _adapters(module: nn.Module) -> frozenset[str]:
    """Return the names of the adapters in a module that PEFT put in the place of another."""
    if not any(base.__name__ in ("BaseTunerLayer", "AuxiliaryTrainingWrapper") for base in type(module).__mro__):
        return frozenset()
    parts = [part for part in module.children() if isinstance(part, nn.ModuleDict | nn.ParameterDict)]
    return frozenset(str(name) for part in parts for name in part)


def _keep(live: PreTrainedModel, path: str, kept: Sequence[int]) -> None:
    parent, _, name = path.rpartition(".")
    layers = live.get_submodule(path)
    setattr(live.get_submodule(parent), name, type(layers)([layers[layer] for layer in kept]))


def _follow(
    live: PreTrainedModel, before: PreTrainedModel, after: PreTrainedModel, paths: tuple[str, str], kept: Sequence[int]
) -> None:
    """Give modules the attributes that differ between the two blueprints: numbers of layers, counts, kinds by layer."""
    old_path, new_path = paths
    for new, old in enumerate(kept):
        layer = f"{old_path}.{old}"
        built_layer = after.get_submodule(f"{new_path}.{new}")
        _copy_changed(live.get_submodule(layer), before.get_submodule(layer), built_layer)
    _copy_changed(live, before, after, without=f"{old_path}.")


def _copy_changed(live: nn.Module, before: nn.Module, after: nn.Module, *, without: str | None = None) -> None:
    was, becomes = dict(before.named_modules()), dict(after.named_modules())
    for name, module in live.named_modules():
        if name in was and name in becomes and not (without and name.startswith(without)):
            known = dict(plain_attributes(was[name]))
            for key, value in plain_attributes(becomes[name]):
                if key in known and known[key] != value:
                    setattr(module, key, value)


def _tell_configs(live: PretrainedConfig, raw: Mapping[str, Any], config: Mapping[str, Any], key: str | None) -> None:
    """Set what changed in the config that the modules share, and in that of the text inside of it."""
    if key:
        _tell_configs(getattr(live, key), raw.get(key) or {}, config[key], None)
    for name, value in config.items():
        if name != key and (name not in raw or raw[name] != value):
            setattr(live, name, value)


def _renumber_devices(model: nn.Module, live: PreTrainedModel, path: str, kept: Sequence[int]) -> None:
    numbered = re.compile(rf"^((?:.*\.)?{re.escape(path)}\.)(\d+)(?=\.|$)")
    for owner in {id(module): module for module in (model, live)}.values():
        places = vars(owner).get("hf_device_map")
        if places:
            matches = ((name, place, numbered.match(name)) for name, place in places.items())
            vars(owner)["hf_device_map"] = {
                numbered.sub(lambda at: f"{at[1]}{kept.index(int(at[2]))}", name): place
                for name, place, at in matches
                if not at or int(at[2]) in kept
            }
