"""Where a model keeps its decoder layers, found by building it on the meta device; and the check that a cut is exact.

Nothing is tabled by architecture: the layers are the longest-lived list inside the decoder with as many entries as the
text config counts. A pruned config is trusted only after `check_cut` has compared the model it builds with the original,
layer by layer.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.fields import Cut, cut_fields, rename_layers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

TEXT_KEYS = ("text_config", "decoder", "generator", "language_config", "llm_config")
# What transformers raises, somewhere inside, for a config with wrong values.
UNBUILDABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
INDEX_NAMES = re.compile(r"idx|index|layer_id|layer_num|block_id|number")
NOT_STRUCTURE = {"name_or_path"}  # where a model was read from
SCALARS = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Anatomy:
    """Module paths of a causal language model. `layers_path` is where the state dict has its layers ('model.layers')."""

    model_type: str
    architecture: str
    layers: int
    layers_path: str
    embedding: str
    norm: str | None
    head: str
    tied: bool
    text_key: str | None
    count_key: str

    def layer(self, index: int) -> str:
        """Module path of one layer."""
        return f"{self.layers_path}.{index}"


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as it is stored.

    Raises:
        CheckpointError: it is missing, empty, not JSON, or names no model type.
    """
    path = directory / "config.json"
    fix = "point at a directory saved by save_pretrained, or at its hub id"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (directory / "adapter_config.json").exists():
            raise CheckpointError(
                directory,
                expected="a model",
                found="a PEFT adapter",
                fix="merge it into its base model first (peft: merge_and_unload)",
            ) from error
        raise CheckpointError(path, expected="the model's config.json", found="no such file", fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, expected="JSON", found=str(error), fix=fix) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(path, expected="a JSON object with a model_type", found=json.dumps(config)[:80], fix=fix)
    return config


def meta_model(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model that directory's config describes, without weights (meta device).

    Raises:
        CheckpointError: the config is unreadable or inconsistent, or needs remote code that is not trusted.
        ArchitectureError: it is not a decoder-only language model that transformers can build.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = read_config(directory)
    _check_known(directory, raw, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except (StrictDataclassError, *UNBUILDABLE) as error:
        raise CheckpointError(
            directory / "config.json",
            expected="a config transformers accepts",
            found=_first_line(error),
            fix="correct the field",
        ) from error
    _check_decoder_only(directory, config, raw)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError, ImportError) as error:
        raise ArchitectureError(
            directory,
            expected=f"{raw['model_type']} to be built from its config",
            found=_first_line(error),
            fix="check the config, or install what it names",
        ) from error
    model.tie_weights()  # on the meta device some versions of transformers leave that undone
    return model


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _check_known(directory: Path, raw: Mapping[str, Any], trust_remote_code: bool) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if raw["model_type"] in CONFIG_MAPPING_NAMES or (raw.get("auto_map") and trust_remote_code):
        return
    found = f"model_type {raw['model_type']!r}"
    if raw.get("auto_map"):
        raise CheckpointError(
            directory,
            expected="an architecture transformers ships",
            found=f"{found}, which needs the checkpoint's own Python code",
            fix="read that code, then add --trust-remote-code",
        )
    raise ArchitectureError(
        directory,
        expected=f"an architecture transformers {transformers.__version__} ships",
        found=found,
        fix="update transformers if it is newer",
    )


def _check_decoder_only(directory: Path, config: PretrainedConfig, raw: Mapping[str, Any]) -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    def refuse(found: str) -> None:
        raise ArchitectureError(
            directory, expected="a decoder-only language model", found=found, fix="choose a causal language model"
        )

    if config.is_encoder_decoder:
        refuse(f"{config.model_type}, an encoder-decoder")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not raw.get("auto_map"):
        refuse(f"{config.model_type}, which has no causal language model in transformers")
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False
    if encoder:
        refuse(f"{config.model_type}, an encoder")


def dissect(model: PreTrainedModel, directory: Path) -> Anatomy:
    """Find the decoder layers, embedding, final norm and head of a model built by meta_model or loaded.

    Raises:
        ArchitectureError: no list of modules has as many entries as the config counts layers.
    """
    names = {id(module): name for name, module in model.named_modules()}
    text = model.config.get_text_config(decoder=True)
    layers_path = _find_layers(model, text.num_hidden_layers, names, directory)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise ArchitectureError(
            directory, expected="a language model head", found="none", fix="choose a causal language model"
        )
    return Anatomy(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        layers=text.num_hidden_layers,
        layers_path=layers_path,
        embedding=names[id(embedding)],
        norm=_find_norm(model, layers_path),
        head=names[id(head)],
        tied=head.weight is embedding.weight,
        text_key=next(
            (key for key in TEXT_KEYS if text is not model.config and getattr(model.config, key, None) is text), None
        ),
        count_key=text.attribute_map.get("num_hidden_layers", "num_hidden_layers"),
    )


def _find_layers(model: PreTrainedModel, count: int, names: Mapping[int, str], directory: Path) -> str:
    from torch import nn

    root = names.get(id(model.get_decoder()), "")
    lists = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and name.startswith(root)
    }
    outermost = {name: size for name, size in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    if not outermost:
        raise ArchitectureError(
            directory,
            expected=f"a list of {count} decoder layers inside {type(model).__name__}",
            found="none",
            fix="this architecture is not supported; open an issue with its config.json",
        )
    largest: str = max(outermost, key=lambda name: outermost[name])
    return largest


def _find_norm(model: PreTrainedModel, layers_path: str) -> str | None:
    parent_path = layers_path.rpartition(".")[0]
    parent = model.get_submodule(parent_path)
    found = [
        name
        for name, module in parent.named_children()
        if ("norm" in type(module).__name__.lower() or name.startswith(("norm", "ln_", "final_")))
        and not name.startswith("embed")
    ]
    return f"{parent_path}.{found[-1]}" if found else None


def stored_layers_path(anatomy: Anatomy, names: Iterable[str], directory: Path) -> str:
    """The prefix under which a checkpoint's files store the layers: of those numbered 0 to N-1, the one most like its path.

    Files may lack the model's own prefix (gpt2: h.0), or order it otherwise (gemma3: language_model.model.layers.0).

    Raises:
        CheckpointError: the stored names do not show which tensors belong to which of the config's layers.
    """
    name = anatomy.layers_path.rpartition(".")[2]
    found: dict[str, set[int]] = {}
    for match in (re.match(rf"(.*?\b{re.escape(name)})\.(\d+)\.", stored) for stored in names):
        if match:
            found.setdefault(match[1], set()).add(int(match[2]))
    complete = [prefix for prefix, numbers in found.items() if numbers.issuperset(range(anatomy.layers))]
    words = anatomy.layers_path.split(".")
    likeness = {prefix: len(set(words) & set(prefix.split("."))) for prefix in complete}
    best = [prefix for prefix in complete if likeness[prefix] == max(likeness.values())]
    if len(best) == 1:
        return best[0]
    seen = {prefix: len(numbers) for prefix, numbers in found.items()}
    raise CheckpointError(
        directory,
        expected=f"tensors named {anatomy.layer(0)} to {anatomy.layer(anatomy.layers - 1)}",
        found=f"numbered prefixes {seen}" if seen else "no tensor with a layer number",
        fix="check that the weights belong to this config; a form that fuses layers must be converted first",
    )


def shortened(
    raw: Mapping[str, Any], model: PreTrainedModel, anatomy: Anatomy, kept: Sequence[int], stored_path: str
) -> dict[str, Any]:
    """The stored config with only the kept layers: the count, every per-layer field, and names inside quantization_config.

    Fields that transformers derives from the depth are written out, since the depth they were derived from is gone.
    """
    config = json.loads(json.dumps(raw))
    text = config.setdefault(anatomy.text_key, {}) if anatomy.text_key else config
    resolved = model.config.get_text_config(decoder=True).to_dict()
    text.update(cut_fields(Cut(anatomy.layers, tuple(kept), resolved)))
    for key in {anatomy.count_key, "num_hidden_layers"} & ({*text} | {anatomy.count_key}):
        text[key] = len(kept)
    new_index = {old: new for new, old in enumerate(kept)}
    if "quantization_config" in config:
        for prefix in {anatomy.layers_path, stored_path}:  # quantisers name modules by either
            config["quantization_config"] = rename_layers(config["quantization_config"], prefix, new_index)
    return dict(config)


def check_cut(
    config: Mapping[str, Any],
    model: PreTrainedModel,
    anatomy: Anatomy,
    kept: Sequence[int],
    directory: Path,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Build the pruned config on the meta device and compare it with the original's kept layers.

    Compared: names, shapes and dtypes of all parameters and buffers, module types, and every scalar attribute of every
    module; layer numbers must be the new ones. What depends on values a forward pass computes is left to `verify`.

    Raises:
        ArchitectureError: the pruned config does not rebuild the kept layers; names the layer, the field and the values.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        if trust_remote_code:
            for code in directory.glob("*.py"):
                shutil.copy(code, folder)
        try:
            after = meta_model(Path(folder), trust_remote_code=trust_remote_code)
        except (CheckpointError, ArchitectureError) as error:
            raise ArchitectureError(
                directory, expected="the pruned config to build", found=error.found, fix="cut the tail, or other layers"
            ) from error
    for new, old in enumerate(kept):
        _compare(
            f"layer {old}",
            model.get_submodule(anatomy.layer(old)),
            after.get_submodule(anatomy.layer(new)),
            (old, new),
            directory,
        )
    _compare_rest(model, after, anatomy, (anatomy.layers, len(kept)), directory)


def _compare(where: str, before: nn.Module, after: nn.Module, numbers: tuple[int, int], directory: Path) -> None:
    _compare_facts(where, dict(_facts(before)), dict(_facts(after)), numbers, directory)


def _compare_rest(
    before: nn.Module, after: nn.Module, anatomy: Anatomy, counts: tuple[int, int], directory: Path
) -> None:
    def outside(model: nn.Module) -> dict[str, Any]:
        inside = f"{anatomy.layers_path}."
        return {name: fact for name, fact in _facts(model) if not name.startswith(inside)}

    _compare_facts("outside the layers", outside(before), outside(after), counts, directory)


def _compare_facts(
    where: str, before: Mapping[str, Any], after: Mapping[str, Any], numbers: tuple[int, int], directory: Path
) -> None:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, "absent"), after.get(name, "absent")
        renumbered = (old, new) == numbers and (where.startswith("outside") or INDEX_NAMES.search(name))
        stale = where.startswith("layer") and INDEX_NAMES.search(name) and old == new == numbers[0] != numbers[1]
        if (old != new and not renumbered) or stale:
            raise ArchitectureError(
                f"{directory}, {where}, {name}",
                expected=f"{old!r} to stay what it is",
                found=f"{new!r} in the shortened model",
                fix="choose other layers: this architecture derives it from the depth or the layer's position",
            )


def _facts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything about a module tree that can be compared without weights, as (name, plain value)."""
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        yield name, (tuple(tensor.shape), str(tensor.dtype))
    for path, child in module.named_modules():
        dot = "." if path else ""
        yield f"{path}{dot}type", type(child).__name__
        for name, value in vars(child).items():
            if not name.startswith("_") and name not in NOT_STRUCTURE and _is_plain(value):
                yield f"{path}{dot}{name}", value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, SCALARS) for item in value)
    return isinstance(value, SCALARS)
