"""The metadata of a GGUF model as a question of depth: how it must read without some layers, or why it cannot; pure.

llama.cpp knows a layer's kind (full or sliding attention, dense or experts, with or without rotary positions) partly from
the file and partly from the layer's number (its src/models, load_arch_hparams). A cut is exact where every kept layer has
in the shorter model, by the same rules, the kind that it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shortstack.checkpoint.gguf_file import FLOAT32, Entry, GgufFile
from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.machine.formats import show_layers
from shortstack.planning import Plan
from shortstack.planning.exactness import nearest

DEPTH = "block_count"
EXTRA = "nextn_predict_layers"  # blocks behind the last layer that predict further tokens
DIRECTORY = "write a directory, of dequantised weights, where transformers reads the file"

DENSE_FIRST = "leading_dense_block_count"
EXPERTS_EVERY = "interleave_moe_layer_step"
FULL_EVERY = "full_attention_interval"
SLIDING, WINDOW = "attention.sliding_window_pattern", "attention.sliding_window"
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

    Where there is no such field it is every `usual` layers; where that is None, or the field says it by layer, none is.
    """

    def kind(layer: int, _depth: int, fields: Fields) -> bool:
        period = fields.get(name, usual)
        return isinstance(period, int) and period > 0 and (layer + 1) % period == 0

    return kind


def depth_is(depth: int) -> Rule:
    """Return a rule that holds if the model has exactly this many layers, which changes what all of them do."""
    return lambda _layer, layers, _fields: layers == depth


def depth_from(depth: int) -> Rule:
    """Return a rule that holds if the model has so many layers or more, which gives all of them further tensors."""
    return lambda _layer, layers, _fields: layers >= depth


def how_many(_layer: int, layers: int, _fields: Fields) -> int:
    """Return the number of layers, by which llama.cpp scales every branch of MiniCPM3, whatever is written."""
    return layers


def is_lite(_layer: int, layers: int, fields: Fields) -> bool:
    """Say whether llama.cpp takes a model for a lite DeepSeek, whose queries have no rank."""
    return layers in (26, 27) or (layers == 48 and fields.get("vocab_size") == 128256)


def where(name: str, rule: Rule) -> Rule:
    """Make a rule count only where a field has another value than 0."""
    return lambda layer, depth, fields: rule(layer, depth, fields) if fields.get(name) else None


def is_dense(layer: int, _depth: int, fields: Fields) -> bool:
    """Say whether a layer is one of the first, which have no experts."""
    return bool(layer < fields.get(DENSE_FIRST, 0))


def deepstack(layer: int, _depth: int, fields: Fields) -> int | None:
    """Return the number of one of the first layers, each of which sees something of its own."""
    return layer if layer < fields.get("n_deepstack_layers", 0) else None


def halvings(layer: int, _depth: int, fields: Fields) -> int | None:
    """Return how often the weights of a layer were halved, once for every so many before it."""
    every_so_many = fields.get("rescale_every_n_layers")
    return layer // every_so_many if every_so_many else None


def is_first(layer: int, _depth: int, _fields: Fields) -> bool:
    """Say whether a layer is the first, which makes something for all others."""
    return layer == 0


PLAIN = """
    apertus arcee arctic bitnet bloom chameleon chatglm codeshell dbrx ernie4_5 exaone falcon falcon-h1 gemma
    glm4 gpt2 gptneox granite granitehybrid granitemoe grok grovemoe hunyuan-dense hunyuan-moe internlm2 jais
    jamba lfm2 llama mamba mamba2 minicpm mpt nemotron nemotron_h olmo olmoe openelm orion phi2 phi3
    phimoe plamo2 plm qwen2 qwen2moe qwen2vl qwen3 qwen3moe seed_oss stablelm starcoder starcoder2 xverse
"""
# By architecture: what a layer's number decides. An empty tuple: nothing does. What is not here is refused.
RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(PLAIN.split(), ()),
    "baichuan": (depth_is(32), depth_is(40)),  # the 7B has rotary positions, the 13B ALiBi
    "bailingmoe": (is_dense,),
    "bailingmoe2": (is_dense,),
    "cohere2": (every(4), by_field(SLIDING, 4)),
    "command-r": (depth_from(64),),  # norms of queries and keys
    "deepseek": (is_dense,),
    "deepseek2": (is_dense, is_lite),
    "dots1": (is_dense,),
    "ernie4_5-moe": (is_dense, by_field(EXPERTS_EVERY)),
    "exaone4": (where(WINDOW, every(4)), depth_is(64)),
    "gemma2": (every(2), by_field(SLIDING, 2), depth_is(46)),  # the 27B scales attention otherwise
    "gemma3": (where(WINDOW, every(6)), where(WINDOW, by_field(SLIDING, 6)), depth_is(62)),
    "glm4moe": (is_dense,),
    "gpt-oss": (every(2), by_field(SLIDING, 2)),
    "lfm2moe": (is_dense,),
    "minicpm3": (how_many,),
    "llama4": (every(4), by_field(SLIDING, 4), by_field(EXPERTS_EVERY)),
    "olmo2": (where(WINDOW, every(4)), where(WINDOW, by_field(SLIDING, 4))),
    "qwen35": (by_field(FULL_EVERY, 4),),
    "qwen35moe": (by_field(FULL_EVERY, 4),),
    "qwen3next": (by_field(FULL_EVERY, 4),),
    "qwen3vl": (deepstack,),
    "qwen3vlmoe": (deepstack,),
    "rwkv6": (is_first, halvings),
    "rwkv7": (is_first,),
    "smallthinker": (every(4, first=True), by_field(SLIDING)),
    "smollm3": (every(4),),
}


def same_kind(model: GgufFile, before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Say whether llama.cpp takes a layer of a converted model for one of the kind that it had, as far as that is known.

    before, after: the layer's number, and how many layers there are. How many are dense was counted by the config.
    """
    fields = GgufDepth(model.architecture, model.entries, model.parts[0]).fields
    rules = [rule for rule in RULES.get(model.architecture, ()) if rule is not is_dense]
    return all(rule(*before, fields) == rule(*after, fields) for rule in rules)


@dataclass(frozen=True)
class GgufDepth:
    """The layers of a GGUF model. where: its file, in errors."""

    architecture: str
    entries: Mapping[str, Entry]
    where: Path

    @classmethod
    def of(cls, model: GgufFile) -> GgufDepth:
        """Read what depends on depth in a model's metadata, and refuse a file that lacks a layer's tensors."""
        depth = cls(model.architecture, model.entries, model.parts[0])
        depth.check_known()
        depth.check_whole(model)
        return depth

    @cached_property
    def fields(self) -> Fields:
        """Values of the architecture, by their names without it."""
        prefix = f"{self.architecture}."
        return {
            name.removeprefix(prefix): entry.value for name, entry in self.entries.items() if name.startswith(prefix)
        }

    @property
    def layers(self) -> int:
        """Decoder layers; blocks behind them that predict further tokens are none."""
        return int(self.fields[DEPTH]) - int(self.fields.get(EXTRA, 0))

    def without(self, kept: Sequence[int]) -> dict[str, Entry]:
        """Return all metadata of the model of these layers alone, in the source's order."""
        changed = self._changed(kept)
        if changed is None:
            raise self._refused(kept)
        return {**self.entries, **{f"{self.architecture}.{name}": entry for name, entry in changed.items()}}

    def is_exact(self, plan: Plan) -> bool:
        return self._changed(plan.kept) is not None

    def check_known(self) -> None:
        """Refuse a file of which it is not known what depends on a layer's number."""
        if self.architecture not in RULES:
            message = (
                f"{self.where} is of {self.architecture}, of which it is not known what depends on a layer's number"
            )
            raise ArchitectureError(f"{message}; cut the checkpoint it was made of, or {DIRECTORY}")
        fields, depth = self.fields, self.fields.get(DEPTH)
        if type(depth) is not int or self.layers < 1:
            raise CheckpointError(f"{self.where}: {self.architecture}.{DEPTH} is {depth!r}; download the file again")
        arrays = [name for name in fields if isinstance(fields[name], list) and len(fields[name]) == depth]
        strange = [name for name in UNRULED if fields.get(name)]
        strange += [name for name in arrays if name not in PER_LAYER | NOT_BY_LAYER]
        if strange:
            message = f"{self.where}: how {self.architecture}.{strange[0]} depends on the {depth} layers is not known"
            raise ArchitectureError(f"{message}; {DIRECTORY}")

    def check_whole(self, model: GgufFile) -> None:
        """Refuse a file that lacks a layer's tensors."""
        blocks = {tensor.block for tensor in model.tensors}
        missing = next((layer for layer in range(self.layers) if layer not in blocks), None)
        if missing is not None:
            message = f"{self.where} has no tensor of layer {missing}, of {self.layers}; download all of it again"
            raise CheckpointError(message)

    def _kinds(self, fields: Fields, depth: int) -> list[tuple[Any, ...]]:
        return [tuple(rule(layer, depth, fields) for rule in RULES[self.architecture]) for layer in range(depth)]

    def _changed(self, kept: Sequence[int]) -> dict[str, Entry] | None:
        """Return the metadata that the shorter model needs changed; None if some layer would be of another kind."""
        before = self._kinds(self.fields, self.layers)
        sliced = self._sliced(kept)
        fields = {**self.fields, **{name: entry.value for name, entry in sliced.items()}}
        wanted = [before[layer] for layer in kept]
        for period in self._periods(fields, len(kept)):
            if self._kinds({**fields, **period}, len(kept)) == wanted:
                return {**sliced, **{name: self._number(name, value) for name, value in period.items()}}
        return None

    def _sliced(self, kept: Sequence[int]) -> dict[str, Entry]:
        fields, entries = self.fields, {DEPTH: self._number(DEPTH, len(kept))}
        for name in sorted(PER_LAYER & fields.keys()):
            entry = self.entries[f"{self.architecture}.{name}"]
            if entry.of is not None and len(entry.value) >= self.layers:
                entries[name] = Entry.array([entry.value[layer] for layer in kept], entry.of)
        if DENSE_FIRST in fields:
            entries[DENSE_FIRST] = self._number(DENSE_FIRST, sum(layer < fields[DENSE_FIRST] for layer in kept))
        if EXTRA in fields:
            entries[EXTRA] = self._number(EXTRA, 0)
        if self.architecture == "minicpm" and "residual_scale" not in fields:  # by depth, where none is written
            entries["residual_scale"] = Entry.number(1.4 / math.sqrt(self.layers), FLOAT32)
        return entries

    def _number(self, name: str, value: int) -> Entry:
        return Entry.number(value, self.entries[f"{self.architecture}.{name}"].kind)

    def _periods(self, fields: Fields, depth: int) -> Iterator[dict[str, int]]:
        """Yield ways to set the intervals: as they are first, then all others of one of them."""
        yield {}
        for name in INTERVALS:
            if isinstance(fields.get(name), int):
                yield from ({name: period} for period in range(1, depth + 2))

    def _refused(self, kept: Sequence[int]) -> ArchitectureError:
        removed = tuple(layer for layer in range(self.layers) if layer not in kept)
        found = nearest(Plan(self.layers, removed, "layers"), self.is_exact)
        hint = f"cut {show_layers(found.removed).replace(' ', '')}" if found else "cut whole periods"
        message = (
            f"without layers {show_layers(removed)} llama.cpp would take others for another kind of {self.architecture}"
        )
        return ArchitectureError(f"{message} layer; {hint}", option="layers")
