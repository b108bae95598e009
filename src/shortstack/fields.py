"""Which config fields follow the layers, and what a cut makes of each. Pure: dictionaries in, dictionaries out.

The general rule: a top-level list with one entry per layer loses the entries of the removed layers. Fields that count,
name or space layers have a rule of their own in RULES; a new quirk is one entry there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortstack.errors import ArchitectureError

# Lists that may happen to be as long as the model is deep, and do not describe layers.
NOT_PER_LAYER = ("token", "architectures", "torch_dtype", "dtype", "labels")


@dataclass(frozen=True)
class Cut:
    """The layers kept, out of how many, and all fields of the text config as transformers resolved them."""

    layers: int
    kept: tuple[int, ...]
    fields: Mapping[str, Any]


Rule = Callable[[str, Any, Cut], Mapping[str, Any]]


def leading(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """The first `value` layers are special (dense, or with full attention): count those that stay."""
    return {name: sum(layer < value for layer in cut.kept)} if isinstance(value, int) else {}


def trailing(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """The last `value` layers are special (they share keys and values): count those that stay."""
    return {name: sum(layer >= cut.layers - value for layer in cut.kept)} if isinstance(value, int) else {}


def indices(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """A list of layer numbers: those that stay, renumbered."""
    if value is None:
        return {}
    return {name: [new for new, old in enumerate(cut.kept) if old in set(value)]}


def extra_heads(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Multi-token prediction layers were trained on top of the full stack: they go with the cut."""
    return {name: 0} if value else {}


def repeated(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """A pattern repeated over the layers (recurrent_gemma's block_types): spelled out for those that stay."""
    return {name: [value[layer % len(value)] for layer in cut.kept]} if value else {}


def periodic(offset: str) -> Rule:
    """Layers with index % period == offset are special (jamba): the period and offset that still describe them.

    Where none does, the fields stay as they are and the self-check refuses the cut.
    """

    def rule(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
        start = cut.fields.get(offset)
        if not value or start is None:
            return {}
        marked = [new for new, old in enumerate(cut.kept) if old % value == start]
        fitted = _fit_period(marked, len(cut.kept))
        return {name: fitted[0], offset: fitted[1]} if fitted else {}

    return rule


def _fit_period(marked: Sequence[int], layers: int) -> tuple[int, int] | None:
    """The (period, offset) whose multiples below `layers` are exactly `marked`; the widest period when several fit."""
    for period in range(layers + 1, 0, -1):
        offset = marked[0] if marked else period - 1
        if offset < period and list(range(offset, layers, period)) == list(marked):
            return period, offset
    return None


def sparse_step(name: str, value: Any, cut: Cut) -> Mapping[str, Any]:
    """Qwen MoE: layer i is sparse when (i + 1) % step == 0 and i is not in mlp_only_layers; any mix fits step 1."""
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
    "mlp_only_layers": indices,
    "moe_layers": indices,
    "cross_attention_layers": indices,
    "global_attn_layers": indices,
    "num_nextn_predict_layers": extra_heads,
    "num_mtp_layers": extra_heads,
    "mtp_num_hidden_layers": extra_heads,
    "block_types": repeated,
    "attn_layer_period": periodic("attn_layer_offset"),
    "expert_layer_period": periodic("expert_layer_offset"),
    "attn_layer_offset": lambda _name, _value, _cut: {},  # set by its period's rule
    "expert_layer_offset": lambda _name, _value, _cut: {},
    "decoder_sparse_step": sparse_step,
}


EXTRA_HEADS = tuple(name for name, rule in RULES.items() if rule is extra_heads)


def cut_fields(cut: Cut) -> dict[str, Any]:
    """Every field of the text config whose value follows from the layers kept, except the layer count itself.

    >>> cut_fields(Cut(4, (0, 3), {"layer_types": ["s", "f", "s", "f"], "max_window_layers": 2, "rope_theta": 1e4}))
    {'layer_types': ['s', 'f'], 'max_window_layers': 1}
    """
    changes: dict[str, Any] = {}
    for name, value in cut.fields.items():
        if name in RULES:
            continue
        if (
            isinstance(value, list | tuple)
            and len(value) == cut.layers
            and not any(word in name for word in NOT_PER_LAYER)
        ):
            changes[name] = [value[layer] for layer in cut.kept]
    for name, rule in RULES.items():
        if name in cut.fields:
            changes.update(rule(name, cut.fields[name], cut))
    return changes


def rename_layers(value: Any, prefix: str, new_index: Mapping[int, int]) -> Any:
    """Renumber the layer names inside a nested value, such as quantization_config's list of modules left alone.

    Keys count too: some quantisers map module names to their settings.

    >>> rename_layers({"skip": ["model.layers.3.mlp", "lm_head", "model.layers.1.mlp"]}, "model.layers", {3: 1})
    {'skip': ['model.layers.1.mlp', 'lm_head']}
    """
    if isinstance(value, Mapping):
        names = {key: _renamed(key, prefix, new_index) for key in value}
        return {name: rename_layers(value[key], prefix, new_index) for key, name in names.items() if name is not None}
    if isinstance(value, list):
        renamed = (
            _renamed(item, prefix, new_index) if isinstance(item, str) else rename_layers(item, prefix, new_index)
            for item in value
        )
        return [item for item in renamed if item is not None]
    return value


def _renamed(name: str, prefix: str, new_index: Mapping[int, int]) -> str | None:
    last = prefix.rpartition(".")[2]
    if name.startswith("re:") and re.search(rf"{re.escape(last)}\W*\d", name):
        raise ArchitectureError(
            "config.json, quantization_config",
            expected="layers named one by one",
            found=f"the regular expression {name!r}",
            fix="replace it by the names it stands for",
        )
    head, _, tail = name.partition(f"{prefix}.")
    number, _, rest = tail.partition(".")
    if head or not number.isdigit():
        return name
    new = new_index.get(int(number))
    return None if new is None else f"{prefix}.{new}" + (f".{rest}" if rest else "")
