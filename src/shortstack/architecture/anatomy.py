"""Where a model keeps its decoder layers, and for how many positions, found by building it on the meta device.

Nothing is tabled by architecture: the layers are the outermost list inside the decoder with as many entries as the text
config counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shortstack.architecture.config_fields import QUANTISERS, Cut, cut_fields, rename_layers
from shortstack.errors import ArchitectureError, CheckpointError, InputError, is_out_of_memory, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


TEXT_KEYS = ("text_config", "decoder", "generator", "language_config", "llm_config")  # of multimodal configs
# Architectures with layers that do not each add to one stream of hidden states, so that leaving one out means nothing.
UNSUPPORTED = {
    "blt": "a byte model of three stacks that feed each other",
    "gemma4_assistant": "a draft model, which reads the keys and values of another",
    "gemma4_unified_assistant": "a draft model, which reads the keys and values of another",
    "hrm_text": "two stacks that run in nested loops",
    "inkling2_text": "layers that attend to the outputs of earlier blocks of layers",
    "inkling2_loop_text": "layers that attend to the outputs of earlier blocks of layers",
    "reformer": "reversible layers, which pass two streams",
    "xlm": "layers whose parts lie in several lists",
    "xlnet": "layers that pass two streams, of contents and of queries",
}
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
# Fields that count decoder layers, by the names transformers gives them.
COUNTS = (
    "num_hidden_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_layers",
    "n_layers",
    "n_layer",
    "num_blocks",
)


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
    count_keys: tuple[str, ...]

    def layer(self, index: int) -> str:
        return f"{self.layers_path}.{index}"


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json as it is stored."""
    path = directory / "config.json"
    fix = "name a folder saved by save_pretrained, or a hub id"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (directory / "adapter_config.json").exists():
            adapter = f"{directory} is a PEFT adapter; merge it into its base model first (merge_and_unload)"
            raise CheckpointError(adapter) from error
        raise CheckpointError(f"{path} does not exist; {fix}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({one_line(error)}); {fix}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path} has no model_type; {fix}")
    return config


def check_depth(raw: Mapping[str, Any], tensors: int, directory: Path) -> None:
    """Refuse a config that names more layers than there are tensors, before a model of that depth is built."""
    for config in (raw, *(raw[key] for key in TEXT_KEYS if isinstance(raw.get(key), dict))):
        for name in COUNTS:
            count = config.get(name)
            if type(count) is int and not 0 < count <= max(2 * tensors, 1):  # longcat and dory store twice the number
                wrong = f"{directory / 'config.json'}: {name} is {count:,} for {tensors} tensors"
                raise CheckpointError(f"{wrong}; find the config that belongs to these weights")


def meta_model(
    directory: Path, *, trust_remote_code: bool = False, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Return the model that directory's config describes, without weights (meta device).

    dtype: with its buffers in memory, for weights of that type; without it they have no values either.
    """
    import torch
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    raw = read_config(directory)
    _check_known(directory, raw, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except (StrictDataclassError, *UNBUILDABLE) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise CheckpointError(f"transformers rejects {directory / 'config.json'} ({reason}); correct it") from error
    _check_decoder_only(directory, config, raw)
    try:
        with init_empty_weights(include_buffers=False) if dtype else torch.device("meta"):
            typed = {"dtype": dtype} if dtype else {}
            model = auto_class(raw["model_type"]).from_config(config, trust_remote_code=trust_remote_code, **typed)
    except UNBUILDABLE as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        wrong = f"{directory}: {raw['model_type']} cannot be built from its config ({reason})"
        raise ArchitectureError(f"{wrong}; correct it, or install what it names") from error
    model.tie_weights()  # on the meta device some versions of transformers leave that undone
    return model


def auto_class(model_type: str) -> Any:
    """Find the class of transformers that loads a type: that of causal language models, or of those that see images."""
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:  # some see images, too (gemma3), and are one class
        return auto.AutoModelForCausalLM
    sees = model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return auto.AutoModelForImageTextToText if sees else auto.AutoModelForCausalLM


def _check_known(directory: Path, raw: Mapping[str, Any], trust_remote_code: bool) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if raw["model_type"] in CONFIG_MAPPING_NAMES or (raw.get("auto_map") and trust_remote_code):
        return
    model_type = f"{directory}: model_type {raw['model_type']!r}"
    if raw.get("auto_map"):
        code = f"{model_type} needs the checkpoint's own Python code"
        raise CheckpointError(f"{code}; read it, then allow it with trust_remote_code")
    raise ArchitectureError(
        f"{model_type} is unknown to transformers {transformers.__version__}; update it if that is newer"
    )


def _check_decoder_only(directory: Path, config: PretrainedConfig, raw: Mapping[str, Any]) -> None:
    from transformers.models.auto import modeling_auto as auto

    def refuse(kind: str) -> None:
        raise ArchitectureError(f"{directory} is {kind}; choose a decoder-only language model with one stack of layers")

    if config.is_encoder_decoder:
        refuse(f"{config.model_type}, an encoder-decoder")
    known = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()
    if config.model_type not in known and not raw.get("auto_map"):
        refuse(f"{config.model_type}, of which transformers has no causal language model")
    if raw["model_type"] in UNSUPPORTED:
        refuse(f"{raw['model_type']}, {UNSUPPORTED[raw['model_type']]}")
    if config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False:
        refuse(f"{config.model_type}, an encoder")


def dissect(model: PreTrainedModel, raw: Mapping[str, Any], directory: Path) -> Anatomy:
    """Find the decoder layers, embedding, final norm and head of a model built by meta_model from the config `raw`."""
    names = {id(module): name for name, module in model.named_modules()}
    text = model.config.get_text_config(decoder=True)
    counts = _counts(text)
    layers_path = _find_layers(model, set(counts.values()), names, directory)
    layers = len(model.get_submodule(layers_path))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise ArchitectureError(f"{directory} has no language model head; choose a causal language model")
    return Anatomy(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        layers=layers,
        layers_path=layers_path,
        embedding=names[id(embedding)],
        norm=_find_norm(model, layers_path),
        head=names[id(head)],
        tied=head.weight is embedding.weight,
        text_key=_find_text_key(model.config, raw),
        count_keys=tuple(name for name, count in counts.items() if count == layers),
    )


def _find_text_key(config: PretrainedConfig, raw: Mapping[str, Any]) -> str | None:
    """Find the key under which a multimodal model's stored config nests its text stack; None where it nests none.

    Some models are built from that part alone. Others store the text's fields beside their own, as the hub's qwen2_5_vl
    does, and transformers moves them as it reads.
    """
    nested = [key for key in TEXT_KEYS if isinstance(raw.get(key), dict)]
    if config.model_type != raw["model_type"]:
        return nested[0] if nested else None
    own = text_attribute(config)
    if own is None or own in nested:
        return own
    flat = any(name in raw for name in COUNTS)
    return nested[0] if nested else None if flat else own


def text_attribute(config: PretrainedConfig) -> str | None:
    """Return the attribute of a multimodal config that is the config of its text stack."""
    text = config.get_text_config(decoder=True)
    return next((key for key in TEXT_KEYS if text is not config and getattr(config, key, None) is text), None)


def resolved_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Return every field as the model reads it; some configs store others (dory's counts attention and MLP apart)."""
    stored: dict[str, Any] = config.to_dict()
    return stored | {name: value for name, value in vars(config).items() if name in stored}


def _counts(config: PretrainedConfig) -> dict[str, int]:
    fields, stored_as = resolved_fields(config), config.attribute_map
    names = dict.fromkeys(stored_as.get(name, name) for name in COUNTS)
    counts = {name: fields[name] for name in names if type(fields.get(name)) is int and "encoder" not in name}
    # Nemotron-H counts its list of block types.
    return counts or {"num_hidden_layers": int(getattr(config, "num_hidden_layers", 0))}


def _find_layers(model: PreTrainedModel, counts: Set[int], names: Mapping[int, str], directory: Path) -> str:
    """Find the decoder layers' path: the outermost list of modules as long as the config says, the largest of several."""
    from torch import nn

    everywhere = {
        name: (name.count("."), -sum(parameter.numel() for parameter in module.parameters()))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in counts
    }
    root = names.get(id(model.get_decoder()), "")
    # Some get_decoder() name something else (ModernBERT's is the matrix of its head).
    lists = {name: size for name, size in everywhere.items() if name.startswith(root)} or everywhere
    if not lists:
        numbers = " or ".join(map(str, sorted(counts)))
        raise ArchitectureError(f"{directory}: {type(model).__name__} has no list of {numbers} decoder layers")
    path: str = min(lists, key=lists.__getitem__)
    return path


def _find_norm(model: PreTrainedModel, layers_path: str) -> str | None:
    parent_path = layers_path.rpartition(".")[0]
    parent = model.get_submodule(parent_path)
    norms = [
        name
        for name, module in parent.named_children()
        if ("norm" in type(module).__name__.lower() or name.startswith(("norm", "ln_", "final_")))
        and not name.startswith(("embed", "per_layer"))  # of Gemma 4's inputs to each layer
    ]
    return f"{parent_path}.{norms[-1]}" if norms else None


def shortened(
    raw: Mapping[str, Any], model: PreTrainedModel, anatomy: Anatomy, kept: Sequence[int], stored_path: str
) -> dict[str, Any]:
    """Shorten the stored config to the kept layers: the count, every per-layer field, and the names that quantisers wrote.

    Fields that transformers derives from the depth are written out, since the depth they were derived from is gone.
    """
    config = json.loads(json.dumps(raw))
    text = config
    if anatomy.text_key:
        text = config[anatomy.text_key] = config.get(anatomy.text_key) or {}  # null, or left out: all its defaults
    resolved = resolved_fields(model.config.get_text_config(decoder=True))
    text.update(cut_fields(Cut(anatomy.layers, tuple(kept), resolved)))
    text.update(dict.fromkeys(anatomy.count_keys, len(kept)))
    new_index = {old: new for new, old in enumerate(kept)}
    for part in {id(section): section for section in (config, text)}.values():
        for name in filter(QUANTISERS.search, part):
            part[name] = rename_layers(part[name], {anatomy.layers_path, stored_path}, new_index)  # named by either
    return dict(config)


class HasPositions(Protocol):
    """A checkpoint, or a model in memory."""

    @property
    def positions(self) -> int | None: ...

    @property
    def anatomy(self) -> Anatomy: ...


def learned_positions(model: PreTrainedModel, anatomy: Anatomy) -> int | None:
    """Return how many positions a model with a table of them has; None where they are computed."""
    from torch import nn

    parents = {path.rpartition(".")[0] for path in (anatomy.layers_path, anatomy.embedding)}
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and name.rpartition(".")[0] in parents
        and re.search(r"wpe|position", name.rpartition(".")[2])
    ]
    stated = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min([*tables, stated or max(tables)]) if tables else None


def check_positions(model: HasPositions, tokens: int, option: str, *, fix: str = "ask for fewer tokens") -> None:
    """Refuse a text for which a model has too few positions; tokens: those it reads and those it generates after them."""
    if model.positions and tokens > model.positions:
        most = f"{model.anatomy.architecture} has positions for {model.positions:,}"
        raise InputError(f"{tokens:,} tokens are too many: {most}; {fix}", option=option)
