"""Rules by which llama.cpp derives a layer's kind from its number, by architecture.

The runtime knows a layer's kind (full or sliding attention, dense or experts, with or without rotary positions) partly from
the file and partly from the layer's number (its src/models, load_arch_hparams). A cut is exact where every kept layer has
in the shorter model, by the same rules, the kind that it had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

DENSE_FIRST = "leading_dense_block_count"
EXPERTS_EVERY = "interleave_moe_layer_step"
FULL_EVERY = "full_attention_interval"
SLIDING = "attention.sliding_window_pattern"
# Arrays with a value for each layer.
PER_LAYER = {
    "activation_sparsity_scale",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.recurrent_layers",
    "expert_feed_forward_length",
    "feed_forward_length",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "xielu.alpha_n",
    "xielu.alpha_p",
    "xielu.beta",
    "xielu.eps",
    SLIDING,
}
# Arrays of something else: sections of a head's dimensions, or factors of its frequencies.
NOT_BY_LAYER = {"rope.dimension_sections", "rope.scaling.long_factor", "rope.scaling.short_factor"}
# Every how many layers one is of another kind: may become another number where kept layers then have the kinds they had.
INTERVALS = (FULL_EVERY, EXPERTS_EVERY, SLIDING)
# Numbers that depend on depth in ways of an architecture's own, of which no rule here knows: refused where they are not 0.
UNRULED = ("attention.shared_kv_layers", "moe_every_n_layers")

Fields = Mapping[str, Any]  # an architecture's values by name, without the architecture's own
Rule = Callable[[int, int, Fields], Any]  # a layer, how many there are, and fields -> its kind


def every(period: int, *, first: bool = False) -> Rule:
    """Make the rule that the last of every so many layers, or the first, is of another kind than the others."""
    return lambda layer, _depth, _fields: layer % period == (0 if first else period - 1)


def by_field(name: str, usual: int | None = None) -> Rule:
    """Make the rule that the last of every so many layers, as a field says, is of another kind.

    Where there is no such field, or one that says it by layer, none is.
    """

    def kind(layer: int, _depth: int, fields: Fields) -> bool:
        period = fields.get(name, usual)
        return isinstance(period, int) and period > 0 and (layer + 1) % period == 0

    return kind


def depth_is(depth: int) -> Rule:
    """Return a rule that holds if the model has exactly this many layers, which changes what all of them do."""
    return lambda _layer, layers, _fields: layers == depth


def where(name: str, rule: Rule) -> Rule:
    """Make a rule count only where a field has another value than 0."""
    return lambda layer, depth, fields: rule(layer, depth, fields) if fields.get(name) else None


def among_first(name: str) -> Rule:
    """Make the rule that a layer is one of the first, of which a field says how many they are."""
    return lambda layer, _depth, fields: layer < fields.get(name, 0)


def nth_of_first(name: str) -> Rule:
    """Make the rule of among_first() for layers each of which has something of its own: it gives their numbers."""
    return lambda layer, _depth, fields: layer if layer < fields.get(name, 0) else None


def group(name: str) -> Rule:
    """Make the rule that gives the group of so many layers in which a layer lies: its weights were scaled by that."""
    return lambda layer, _depth, fields: layer // fields[name] if fields.get(name) else None


def is_first(layer: int, _depth: int, _fields: Fields) -> bool:
    """Say whether a layer is the first, which makes something for all others."""
    return layer == 0


PLAIN = """
    apertus arcee arctic bitnet bloom chameleon chatglm codeshell command-r dbrx exaone falcon falcon-h1 gemma
    glm4 gpt2 gptneox granite granitehybrid granitemoe grok grovemoe hunyuan-dense hunyuan-moe internlm2 jais
    jamba lfm2 llama mamba mamba2 minicpm minicpm3 mpt nemotron nemotron_h olmo olmoe openelm orion phi2 phi3
    phimoe plamo2 plm qwen2 qwen2moe qwen2vl qwen3 qwen3moe seed_oss stablelm starcoder starcoder2 xverse
"""
# By architecture: what a layer's number decides. An empty tuple: nothing does. What is not here is refused.
RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(PLAIN.split(), ()),
    "baichuan": (depth_is(40),),  # the 13B alone has ALiBi for positions
    "bailingmoe": (among_first(DENSE_FIRST),),
    "bailingmoe2": (among_first(DENSE_FIRST),),
    "cohere2": (every(4), by_field(SLIDING, 4)),
    "deepseek": (among_first(DENSE_FIRST),),
    "deepseek2": (among_first(DENSE_FIRST), depth_is(26), depth_is(27)),  # the lite ones have no rank of queries
    "dots1": (among_first(DENSE_FIRST),),
    "ernie4_5": (),
    "ernie4_5-moe": (among_first(DENSE_FIRST), by_field(EXPERTS_EVERY)),
    "exaone4": (where("attention.sliding_window", every(4)), depth_is(64)),
    "gemma2": (every(2), by_field(SLIDING, 2), depth_is(46)),  # the 27B scales attention otherwise
    "gemma3": (every(6), by_field(SLIDING, 6), depth_is(62)),
    "glm4moe": (among_first(DENSE_FIRST),),
    "gpt-oss": (every(2), by_field(SLIDING, 2)),
    "lfm2moe": (among_first(DENSE_FIRST),),
    "llama4": (every(4), by_field(SLIDING, 4), by_field(EXPERTS_EVERY)),
    "olmo2": (where("attention.sliding_window", every(4)), by_field(SLIDING, 4)),
    "qwen35": (by_field(FULL_EVERY, 4),),
    "qwen35moe": (by_field(FULL_EVERY, 4),),
    "qwen3next": (by_field(FULL_EVERY, 4),),
    "qwen3vl": (nth_of_first("n_deepstack_layers"),),
    "qwen3vlmoe": (nth_of_first("n_deepstack_layers"),),
    "rwkv6": (is_first, group("rescale_every_n_layers")),
    "rwkv7": (is_first,),
    "smallthinker": (every(4, first=True), by_field(SLIDING)),
    "smollm3": (every(4),),
}
