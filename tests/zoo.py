"""Tiny random checkpoints of real architectures: the config of each as data, and the functions that make and read them."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 8,
    **IDS,
}
SLIDING = {"sliding_window": 6, "max_position_embeddings": 64}

ZOO = {
    "llama": {**SMALL, "tie_word_embeddings": False},
    "mistral": {**SMALL, **SLIDING},
    "qwen2": {**SMALL, **SLIDING, "use_sliding_window": True, "max_window_layers": 3, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "head_dim": 8, "attention_bias": True},
    "gemma2": {**SMALL, **SLIDING, "head_dim": 8},
    "gemma3_text": {**SMALL, **SLIDING, "head_dim": 8, "sliding_window_pattern": 3},
    "smollm3": {**SMALL, "no_rope_layer_interval": 3},
    "phi3": SMALL,
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 8, "n_head": 4, "n_positions": 64, **IDS},
    "gpt_neox": {**SMALL, "max_position_embeddings": 64},
    "opt": {
        "vocab_size": 96,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
        "max_position_embeddings": 64,
        **IDS,
    },
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma3": {  # multimodal: the text stack is nested, and the vision tower is as deep
        "text_config": {**SMALL, **SLIDING, "head_dim": 8, "sliding_window_pattern": 3},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 8,
            "image_size": 16,
            "patch_size": 8,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 95,
        "boi_token_index": 94,
        "eoi_token_index": 93,
    },
}
CUTS = {"tail": (6, 7), "middle": (3, 4), "first": (0,), "scattered": (1, 4, 6)}


def make(model_type: str, directory: Path, *, seed: int = 0, max_shard_size: str = "5GB", **overrides: object) -> Path:
    """Save a random model of that type."""
    config = CONFIG_MAPPING[model_type](**{**ZOO[model_type], **overrides})
    random_model(config, seed).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def random_model(config: Any, seed: int = 0) -> PreTrainedModel:
    """Every parameter is drawn wide enough that each layer matters."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def edit_config(folder: Path, **fields: object) -> None:
    """Give fields of a checkpoint's config other values."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def forge(folder: Path) -> None:
    """Make the manifest of a written checkpoint fit its files as they are."""
    path = folder / "shortstack.json"
    record = json.loads(path.read_text())
    for name in record["files"]:
        content = (folder / name).read_bytes()
        record["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(record))


@functools.cache
def tiny(model_type: str) -> Path:
    """One shared, read-only checkpoint per type."""
    folder = tempfile.mkdtemp(prefix=f"zoo-{model_type}-")
    atexit.register(shutil.rmtree, folder)
    return make(model_type, Path(folder))


def pass_over(model: PreTrainedModel, layers_path: str, removed: Iterable[int]) -> PreTrainedModel:
    """Make those layers return what enters them, in the form they return things in (bare, or first of several)."""

    def return_input(_layer, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden

    for index in removed:
        model.get_submodule(layers_path)[index].register_forward_hook(return_input, with_kwargs=True)
    return model


def tokenizer(*, bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 entries trained on a little English; bos: it puts <s> before text by itself."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["the walk visits every layer once and in order " * 8], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    if chat:
        made.chat_template = (
            "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<s>assistant: {% endif %}"
        )
    return made


def speaking(
    directory: Path, model_type: str = "llama", *, bos: bool = False, chat: bool = True, **overrides: object
) -> Path:
    """A tiny checkpoint with a tokenizer, so that the whole line can run on it."""
    make(model_type, directory, vocab_size=384, **overrides)
    tokenizer(bos=bos, chat=chat).save_pretrained(directory)
    return directory
