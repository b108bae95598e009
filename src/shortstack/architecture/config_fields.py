"""Which config fields follow the layers, and what a cut makes of each. Pure: dictionaries in, dictionaries out.

The general rule: a top-level list with one entry per layer loses the entries of the removed layers. Fields that count,
name or space layers have a rule of their own in RULES; a new quirk is one entry there. Where no value expresses a cut, the
fields stay as they are, and the self-check refuses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortstack.errors import ArchitectureError

# Lists that may happen to be as long as the model is deep, and do not describe layers.
NOT_PER_LAYER = ("token", "architectures", "dtype", "label", "languages", "mtp", "multipliers", "time_step_limit")
# Modules outside the layers whose weights hold a block for each layer, one after the other along this axis (gemma3n).
DEPTH_BLOCKS: Mapping[str, int] = {"embed_tokens_per_layer": 1, "per_layer_model_projection": 0}


def depth_axis(name: str) -> int | None:
    """Return the axis along which a weight has a block for each layer; None where it has none."""
    return next((axis for block, axis in DEPTH_BLOCKS.items() if f".{block}." in f".{name}"), None)


@dataclass(frozen=True)
class Cut:
    """The layers kept, out of how many, and all fields of the text config as transformers resolved them."""

    layers: int
    kept: tuple[int, ...]
    fields: Mapping[str, Any]


Rule = Callable[[str, Any, Cut], Mapping[str, Any]]


def leading(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Count those that stay of the first `value` layers, which are special (dense, or with full attention)."""
    return {name: sum(layer < value for layer in cut.kept)} if isinstance(value, int) else {}


def trailing(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Count those that stay of the last `value` layers, which are special (they share keys and values)."""
    return {name: sum(layer >= cut.layers - value for layer in cut.kept)} if isinstance(value, int) else {}


def indices(start: int) -> Rule:
    """Make the rule for a list of layer numbers, counted from `start` (qwen4 counts from one): renumber those that stay."""

    def rule(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
        if value is None:
            return {}
        return {name: [new for new, old in enumerate(cut.kept, start) if old + start in set(value)]}

    return rule


def extra_heads(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Drop the multi-token prediction layers: they were trained on top of the full stack, and go with the cut."""
    return {name: 0} if value else {}


def repeated(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Spell out, for the layers that stay, a pattern repeated over the layers (recurrent_gemma's block_types)."""
    return {name: [value[layer % len(value)] for layer in cut.kept]} if value else {}


def looped(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Count the layers that stay of dory's loop, between its leading and its trailing ones."""
    before, after = cut.fields.get("n_input_layers"), cut.fields.get("n_output_layers")
    if value is None or before is None or after is None:
        return {}
    return {name: sum(before <= layer < cut.layers - after for layer in cut.kept)}


def depth_scale(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Find the value that keeps MiniCPM's factor of each residual branch, value / sqrt(depth), at the new depth.

    Rounding may leave the quotient one step off, so the neighbours are tried; where none is equal the self-check refuses.
    """
    if not value:
        return {}
    wanted, root = value / math.sqrt(cut.layers), math.sqrt(len(cut.kept))
    guess = wanted * root
    near = (guess, math.nextafter(guess, 0), math.nextafter(guess, math.inf))
    return {name: next((candidate for candidate in near if candidate / root == wanted), guess)}


def moe_range(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Put the layers with experts, ERNIE's from start to end with (i + 1) % interval == 0, as a range with interval 1."""
    start, end, step = (cut.fields.get(f"moe_layer_{part}") for part in ("start_index", "end_index", "interval"))
    if start is None or end is None or not step:
        return {}
    end = cut.layers - 1 if end == -1 else end
    experts = [new for new, old in enumerate(cut.kept) if start <= old <= end and (old + 1) % step == 0]
    if experts != list(range(experts[0], experts[-1] + 1)) if experts else False:
        return {}
    first, last = (experts[0], experts[-1]) if experts else (len(cut.kept), len(cut.kept))
    return {"moe_layer_start_index": first, "moe_layer_end_index": last, "moe_layer_interval": 1}


def spelled_out(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Spell GPT-Neo's [[[kinds], times], ...] out as one entry: the kinds of the layers that stay, once."""
    kinds = [kind for pattern, times in value or () for _ in range(times) for kind in pattern]
    return {name: [[[kinds[layer] for layer in cut.kept], 1]]} if len(kinds) == cut.layers else {}


def periodic(offset: str) -> Rule:
    """Find the period and offset that still describe special layers, those with index % period == offset (jamba)."""

    def rule(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
        start = cut.fields.get(offset)
        if not value or start is None:
            return {}
        marked = [new for new, old in enumerate(cut.kept) if old % value == start]
        fitted = _fit_period(marked, len(cut.kept))
        return {name: fitted[0], offset: fitted[1]} if fitted else {}

    return rule


def _fit_period(marked: Sequence[int], layers: int) -> tuple[int, int] | None:
    """Find the (period, offset) whose multiples below `layers` are exactly `marked`; the widest period when several fit."""
    for period in range(layers + 1, 0, -1):
        offset = marked[0] if marked else period - 1
        if offset < period and list(range(offset, layers, period)) == list(marked):
            return period, offset
    return None


def sparse_step(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Set Qwen MoE's step to 1, which any mix fits: layer i is sparse when step divides i + 1, if not in mlp_only_layers."""
    if not value or value == 1:
        return {}
    only = set(cut.fields.get("mlp_only_layers") or ())
    dense = [new for new, old in enumerate(cut.kept) if old in only or (old + 1) % value]
    return {name: 1, "mlp_only_layers": dense}


RULES: Mapping[str, Rule] = {
    "first_k_dense_replace": leading,
    "max_window_layers": leading,
    "num_dense_layers": leading,
    "num_kv_shared_layers": trailing,
    "mlp_only_layers": indices(start=0),
    "moe_layers": indices(start=0),
    "attn_layer_indices": indices(start=0),
    "hybrid_layer_ids": indices(start=0),
    "ple_layer_ids": indices(start=1),
    "cross_attention_layers": indices(start=0),
    "global_attn_layers": indices(start=0),
    "num_nextn_predict_layers": extra_heads,
    "num_mtp_layers": extra_heads,
    "mtp_num_hidden_layers": extra_heads,
    "n_input_layers": leading,
    "n_recurrent_layers": looped,
    "n_output_layers": trailing,
    "scale_depth": depth_scale,
    "moe_layer_start_index": moe_range,
    "moe_layer_end_index": lambda _name, _value, _cut: {},  # set by the start's rule
    "moe_layer_interval": lambda _name, _value, _cut: {},
    "attention_types": spelled_out,
    "block_types": repeated,
    "attn_layer_period": periodic("attn_layer_offset"),
    "expert_layer_period": periodic("expert_layer_offset"),
    "attn_layer_offset": lambda _name, _value, _cut: {},  # set by its period's rule
    "expert_layer_offset": lambda _name, _value, _cut: {},
    "decoder_sparse_step": sparse_step,
}
EXTRA_HEADS = tuple(name for name, rule in RULES.items() if rule is extra_heads)


def cut_fields(cut: Cut) -> dict[str, Any]:
    """Return every field of the text config whose value follows from the layers kept, except the layer count itself.

    >>> cut_fields(Cut(4, (0, 3), {"layer_types": ["s", "f", "s", "f"], "max_window_layers": 2, "rope_theta": 1e4}))
    {'layer_types': ['s', 'f'], 'max_window_layers': 1}
    """
    for name, constraint in CONSTRAINTS.items():
        if cut.fields.get(name) is not None:
            constraint(name, cut.fields[name], cut)
    changes: dict[str, Any] = {}
    for name, value in cut.fields.items():
        if name in RULES or any(word in name for word in NOT_PER_LAYER):
            continue
        if isinstance(value, list | tuple) and len(value) == cut.layers:
            changes[name] = [value[layer] for layer in cut.kept]
        elif isinstance(value, Mapping) and value and all(re.fullmatch(r"\d+", str(key)) for key in value):
            by_layer = {int(number): entry for number, entry in value.items()}
            changes[name] = {str(new): by_layer[old] for new, old in enumerate(cut.kept) if old in by_layer}
    for name, rule in RULES.items():
        if name in cut.fields:
            changes.update(rule(name, cut.fields[name], cut))
    return changes


def _check_stays(needed: int, user: int, cut: Cut, *, name: str, what: str, fix: str) -> None:
    """Refuse a cut that removes a layer which a kept one uses; what: it has that is used."""
    if needed not in cut.kept:
        raise ArchitectureError(f"config.json, {name}: layer {user} uses the {what} of layer {needed}; {fix}")


def sharing_previous(name: str, value: Any, cut: Cut) -> None:
    """Refuse to part a "shared" layer from the last other layer before it, whose selection it uses."""
    owner = -1
    for layer, kind in enumerate(value):
        if kind != "shared":
            owner = layer
        elif layer in cut.kept:
            end = next((end for end in range(layer, cut.layers) if value[end] != "shared"), cut.layers)
            fix = f"keep it, or remove all of {owner}-{end - 1}"
            _check_stays(owner, layer, cut, name=name, what="selection", fix=fix)


def kv_sources(name: str, value: Any, cut: Cut) -> None:
    """Refuse to part the last `value` layers from the last of their kind before them, whose keys and values they use."""
    kinds = cut.fields.get("layer_types")
    if not value or kinds is None:
        return
    first = cut.layers - value
    for layer in (layer for layer in cut.kept if layer >= first):
        source = max((other for other in range(first) if kinds[other] == kinds[layer]), default=None)
        if source is not None:
            fix = f"keep layer {source}, or remove the layers from {first} on that are {kinds[layer]}, too"
            _check_stays(source, layer, cut, name=name, what="keys and values", fix=fix)


def halving(name: str, value: Any, cut: Cut) -> None:
    """Refuse a cut that moves a layer behind more or fewer halvings of the hidden states, or changes how many there are.

    RWKV halves its hidden states every `value` layers.
    """
    if len(cut.kept) == 1:  # transformers initialises by layer / (layers - 1)
        raise ArchitectureError("RWKV has at least two layers; keep another")
    if not value or value < 0:
        return
    before, after = cut.layers // value, len(cut.kept) // value
    unscaled = f"or first set {name} to 0 in the config.json of the base model"
    if before != after:
        halved = f"config.json, {name}: hidden states would be halved {after} times, not {before}"
        raise ArchitectureError(f"{halved}; keep at least {before * value} layers, {unscaled}")
    for new, old in enumerate(cut.kept):
        if old // value != new // value:
            halved = f"config.json, {name}: layer {old} would follow {new // value} halvings, not {old // value}"
            raise ArchitectureError(f"{halved}; remove the tail, {unscaled}")


def first_kind(name: str, value: Any, cut: Cut) -> None:
    """Refuse a first layer of linear attention where there was another: generation goes wrong.

    MiniMax counts cached tokens in layer 0, which counts none if it is linear attention.
    """
    linear = "linear_attention"
    if cut.fields.get("model_type") == "minimax" and value[0] != linear and value[cut.kept[0]] == linear:
        first = next(layer for layer in range(cut.layers) if value[layer] != linear)
        counts = "generation counts cached tokens in the first layer, which must have full attention"
        raise ArchitectureError(f"config.json, {name}: {counts}; keep layer {first}")


# Fields by which layers depend on each other in ways that no new value can express.
CONSTRAINTS: Mapping[str, Callable[[str, Any, Cut], None]] = {
    "indexer_types": sharing_previous,
    "num_kv_shared_layers": kv_sources,
    "rescale_every": halving,
    "layer_types": first_kind,
}


def rename_layers(value: Any, paths: Collection[str], new_index: Mapping[int, int]) -> Any:
    """Renumber the layer names inside a nested value, such as quantization_config's list of modules left alone.

    paths: what stands before a layer's number, by whoever named it. Keys count too: some quantisers map module names to
    their settings.

    >>> rename_layers({"skip": ["model.layers.3.mlp*", "lm_head", "model.layers.1.mlp"]}, ["model.layers"], {3: 1})
    {'skip': ['model.layers.1.mlp*', 'lm_head']}
    """
    if isinstance(value, Mapping):
        names = {key: _renamed(key, paths, new_index) for key in value}
        return {name: rename_layers(value[key], paths, new_index) for key, name in names.items() if name is not None}
    if isinstance(value, list):
        renamed = (
            _renamed(item, paths, new_index) if isinstance(item, str) else rename_layers(item, paths, new_index)
            for item in value
        )
        return [item for item in renamed if item is not None]
    return value


# Fields of a config that hold what a quantiser wrote.
QUANTISERS = re.compile(r"quant|compression|modules_to_not|skip_modules|^ignore$")
# What quantisers write for several names at once: regular expressions (compressed-tensors' re:, GPTQModel's +: and -:) and
# globs (Quark). One with a number in it may mean a layer, and would mean another in the shorter model. One that begins with
# a layer's own name, and has no more of a pattern than stars behind it (modelopt), follows that layer.
PATTERN = re.compile(r"^(re|[+-]):|[*?\\^$\[\](){}|+]")
OTHER_THAN_STARS = re.compile(r"[?\\^$\[\](){}|+]")
NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])")


def _renamed(name: str, paths: Collection[str], new_index: Mapping[int, int]) -> str | None:
    layer = re.fullmatch(rf"({'|'.join(map(re.escape, paths))})\.(\d+)(\..*)?", name)
    if PATTERN.search(name) and NUMBER.search(name) and (not layer or OTHER_THAN_STARS.search(name)):
        raise ArchitectureError(f"quantization_config: the pattern {name!r} may mean layers; replace it by their names")
    if not layer:
        return name
    new = new_index.get(int(layer[2]))
    return None if new is None else f"{layer[1]}.{new}{layer[3] or ''}"
