"""Is a cut exact? The pruned config is built on the meta device and compared with the original, layer by layer.

Compared are names, shapes and dtypes of all parameters and buffers, module types, and every plain attribute of every module.
An attribute that is the layer's number in every layer of the original must be the new number; any other must stay what it
was. What a forward pass computes from other places than these is in CONSTRAINTS of config_fields, or left to `verify`.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.architecture.anatomy import Anatomy, dissect, meta_model
from shortstack.architecture.config_fields import DEPTH_BLOCKS
from shortstack.errors import ArchitectureError, CheckpointError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


NOT_STRUCTURE = {"name_or_path", "training"}  # where a model was read from, and what it is used for
SCALARS = (int, float, str, bool, type(None))
# Attributes that follow the depth or the next layer without changing what a layer computes.
HARMLESS = {
    "self_attn.num_hidden_layers",  # minimax sets decay rates by it when made; checkpoints store the rates
    "self_attn.store_full_length_kv",  # whether later layers use its keys and values: kv_sources of config_fields sees to it
    "self_attn.next_skip_topk",  # whether the next layer needs what this one has selected
}
LAYER_NUMBER = re.compile(r"layer_?(idx|index|id)$")  # attributes that may name another layer
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class _Comparison:
    """The original and what the pruned config builds, and how layer numbers go from one to the other."""

    before: PreTrainedModel
    after: PreTrainedModel
    path: str
    kept: Sequence[int]
    directory: Path

    @property
    def counts(self) -> tuple[int, int]:
        return len(list(self.before.get_submodule(self.path).children())), len(self.kept)

    def follows(self, old: Any, new: Any) -> bool:
        """Say whether a list is what the cut makes of it: one with an entry for each layer, or one of layer numbers."""
        lists = isinstance(old, list | tuple) and isinstance(new, list | tuple)
        numbers = lists and [self.kept.index(layer) for layer in old if layer in self.kept] == list(new)
        return numbers or self.sliced(old, new)

    def sliced(self, old: Any, new: Any) -> bool:
        """Return whether a list has an entry for each layer, and lost those of the removed ones."""
        lists = isinstance(old, list | tuple) and isinstance(new, list | tuple)
        return lists and len(old) == self.counts[0] and [old[layer] for layer in self.kept] == list(new)

    def refusal(self, where: str, name: str, old: Any, new: Any) -> ArchitectureError:
        change = f"{name} would be {new!r} in place of {old!r}"
        return ArchitectureError(f"{self.directory}, {where}: {change}; choose other layers to remove")


def check_cut(
    config: Mapping[str, Any],
    model: PreTrainedModel,
    anatomy: Anatomy,
    kept: Sequence[int],
    directory: Path,
    *,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Anatomy]:
    """Compare what the pruned config builds on the meta device with the original's kept layers, and return it."""
    _check_images(model.config, kept, directory)
    after, rebuilt = built(config, directory, trust_remote_code)
    if rebuilt.layers != len(kept):
        raise ArchitectureError(f"{directory}: the pruned config builds {rebuilt.layers} layers, not {len(kept)}")
    if _counts_tokens(model) and not _counts_tokens(after):
        raise ArchitectureError(
            f"{directory}: no attention layer would stay, in which generation counts cached tokens; keep one of them"
        )
    comparison = _Comparison(model, after, anatomy.layers_path, kept, directory)
    _compare_layers(comparison, rebuilt.layers_path)
    _compare_rest(comparison, rebuilt.layers_path)
    return after, rebuilt


def _check_images(config: Any, kept: Sequence[int], directory: Path) -> None:
    """Refuse to renumber layers that features of images enter by their numbers (deepstack), which no module shows."""
    levels = getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ()
    mapped = getattr(config, "deepstack_layer_map", None) or ()
    spatial = (getattr(config, "spatial_target_layers", None) or ()) if mapped else ()
    last = max([len(levels) - 1, *(layer for _, layer in mapped), *spatial])
    if [*kept[: last + 1]] != [*range(last + 1)]:
        raise ArchitectureError(f"{directory}: image features enter layers 0 to {last} by number; remove later layers")


def built(config: Mapping[str, Any], directory: Path, trust_remote_code: bool) -> tuple[PreTrainedModel, Anatomy]:
    """Return what the pruned config of the checkpoint in `directory` builds, as blueprint()."""
    try:
        return blueprint(config, directory, trust_remote_code)
    except (CheckpointError, ArchitectureError) as error:
        raise ArchitectureError(f"the pruned config is refused: {error.message}") from error


def blueprint(
    config: Mapping[str, Any], directory: Path, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Anatomy]:
    """Return the model on the meta device, and its anatomy, that a config builds; directory: of its code, in errors."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        if trust_remote_code:
            for code in directory.glob("*.py"):
                shutil.copy(code, folder)
        try:
            model = meta_model(Path(folder), trust_remote_code=trust_remote_code)
        except (CheckpointError, ArchitectureError) as error:
            raise type(error)(error.message.replace(folder, str(directory))) from error
        return model, dissect(model, config, directory)


def _counts_tokens(model: PreTrainedModel) -> bool:
    """Return whether transformers' cache for the model has a layer that knows how many tokens have passed."""
    from transformers import DynamicCache

    try:
        DynamicCache(config=model.config.get_text_config(decoder=True)).get_seq_length()
    except ValueError:  # "can only be called on Attention layers"
        return False
    return True


def _compare_layers(comparison: _Comparison, path: str) -> None:
    layers = [dict(_facts(layer)) for layer in comparison.before.get_submodule(comparison.path).children()]
    numbers = _own_numbers(layers)
    rebuilt = comparison.after.get_submodule(path).children()
    for (new, old), layer in zip(enumerate(comparison.kept), rebuilt, strict=True):
        before, after = layers[old], dict(_facts(layer))
        for name in _outermost_first((before.keys() | after.keys()) - HARMLESS):
            was, now = before.get(name, "absent"), after.get(name, "absent")
            if name in numbers:
                times, plus = numbers[name]
                was = times * new + plus
            elif type(was) is int and was >= 0 and LAYER_NUMBER.search(name):  # it uses what another layer left
                was = comparison.kept.index(was) if was in comparison.kept else f"layer {was}, which goes"
            if not (_same(was, now) or comparison.sliced(was, now)):
                raise comparison.refusal(f"layer {old}", name, was, now)


def _own_numbers(layers: Sequence[Facts]) -> dict[str, tuple[int, int]]:
    """Find attributes that follow the layer's number in every layer that has them, as times * number + plus.

    times is 1, but for a layer with several attentions, which number theirs apart (longcat: 2 i and 2 i + 1).
    """
    numbers = {}
    for name in {name for facts in layers for name, value in facts.items() if type(value) is int}:
        values = {number: facts[name] for number, facts in enumerate(layers) if name in facts}
        several = range(1, 5) if LAYER_NUMBER.search(name) else (1,)
        fits = (
            (times, plus)
            for times in several
            for plus in range(times)
            if all(value == times * number + plus for number, value in values.items())
        )
        if len(values) > 1 and (fit := next(fits, None)):
            numbers[name] = fit
    return numbers


def _compare_rest(comparison: _Comparison, path: str) -> None:
    """Compare what is outside the layers: what counts or lists them follows the cut; what a removed kind needs may go."""
    before, after = _outside(comparison.before, comparison.path), _outside(comparison.after, path)
    gone = _kinds(comparison.before) - _kinds(comparison.after)
    for name in _outermost_first(before.keys() | after.keys()):
        old, new = before.get(name, "absent"), after.get(name, "absent")
        last = name.rpartition(".")[2]
        unneeded = new == "absent" and any(last.startswith(f"{kind}_") for kind in gone)
        unneeded |= old is True and new is False and any(last == f"has_{kind.split('_')[0]}_layers" for kind in gone)
        kinds = bool(gone) and isinstance(old, list) and _same([kind for kind in old if kind not in gone], new)
        blocks = name.rpartition(".")[0].endswith(tuple(DEPTH_BLOCKS)) and _is_cut(old, new, comparison.counts)
        counted = type(old) is type(new) is int and (
            (old, new) == comparison.counts
            or (bool(LAYER_NUMBER.search(name)) and new == sum(layer < old for layer in comparison.kept))
        )
        if not (_same(old, new) or comparison.follows(old, new) or counted or unneeded or kinds or blocks):
            raise comparison.refusal("outside the layers", name, old, new)


def _outermost_first(names: Set[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.count("."), name))


def _same(old: Any, new: Any) -> bool:
    """Say whether both are equal and of one type; compare numbers with a fraction as the float32 that meets a tensor."""
    if isinstance(old, float) and isinstance(new, float):
        return struct.pack("f", old) == struct.pack("f", new)
    return type(old) is type(new) and bool(old == new)


def _is_cut(old: Any, new: Any, counts: tuple[int, int]) -> bool:
    """Return whether two facts are equal but for numbers that are as many times the count of layers."""
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return all(_is_cut(a, b, counts) for a, b in zip(old, new, strict=True))
    return old == new or (type(old) is type(new) is int and old * counts[1] == new * counts[0])


def _kinds(model: PreTrainedModel) -> set[str]:
    return set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ())


def _outside(model: nn.Module, path: str) -> dict[str, Any]:
    return {name: fact for name, fact in _facts(model) if not name.startswith(f"{path}.")}


def _facts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield everything about a module tree that can be compared without weights, as (name, plain value)."""
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        yield name, (tuple(tensor.shape), str(tensor.dtype))
    for path, child in module.named_modules():
        dot = "." if path else ""
        yield f"{path}{dot}type", type(child).__name__
        for name, value in plain_attributes(child):
            yield f"{path}{dot}{name}", value


def plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield a module's own attributes that are numbers, texts, or lists of them."""
    for name, value in vars(module).items():
        items = value if isinstance(value, list | tuple) else [value]
        if not name.startswith("_") and name not in NOT_STRUCTURE and all(isinstance(item, SCALARS) for item in items):
            yield name, value
