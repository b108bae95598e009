"""Every causal language model that transformers ships, small: the config of each as data, and what the suite makes of it.

A type's config is its class's own, with every size named in SIZES made small; VARIETY says what a type needs beside that, to
build at all or to mix the kinds of layer it can mix. VARIANTS are further configs of some types.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import zoo
from shortstack.architecture.anatomy import UNBUILDABLE

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LAYERS = 8
_SIZES = (
    # tokens and positions
    (96, "vocab_size unpadded_vocab_size vocab_size_per_layer_input"),
    (64, "max_position_embeddings model_max_length max_seq_len context_length n_positions n_ctx"),
    (32, "original_max_position_embeddings"),
    (0, "pad_token_id"),
    (1, "bos_token_id"),
    (2, "eos_token_id"),
    # depth
    (LAYERS, "num_hidden_layers num_layers n_layers n_layer num_blocks encoder_layers decoder_layers"),
    (LAYERS, "num_encoder_layers num_decoder_layers"),
    (3, "max_window_layers"),
    # width
    (32, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim word_embed_proj_dim"),
    (32, "attention_hidden_size lru_width"),
    (48, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim dim_ff dff d_inner intermediate_size_mlp"),
    (48, "dense_intermediate_size ffn_hidden_size"),
    (8, "hidden_size_per_layer_input"),
    (64, "mamba_d_ssm"),
    # attention
    (4, "num_attention_heads n_head n_heads num_heads attention_heads swa_num_attention_heads"),
    (4, "encoder_attention_heads decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads"),
    (4, "linear_num_heads linear_num_value_heads"),
    (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads num_global_key_value_heads"),
    (2, "linear_num_key_heads index_n_heads"),
    (8, "head_dim d_head dim_head attention_head_dim swa_head_dim kv_channels v_head_dim qk_head_dim"),
    (8, "index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim query_pre_attn_scalar"),
    (8, "kv_lora_rank q_lora_rank o_lora_rank index_topk rel_extent floor_scale"),
    (4, "qk_rope_head_dim qk_nope_head_dim rotary_dim d_rel laurel_rank adapter_rank"),
    (6, "sliding_window sliding_window_size window_size local_attention attention_window_size attention_chunk_size"),
    # experts
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token top_k moe_top_k moe_topk zero_expert_num"),
    (1, "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group num_expert_group"),
    (16, "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size"),
    (16, "moe_shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"),
    (8, "router_hidden_size"),
    # state spaces
    (8, "mamba_d_state state_size ssm_state_size chunk_size mamba_chunk_size"),
    (8, "mamba_n_heads mamba_num_heads mamba_d_head mamba_head_dim mamba_headdim"),
    (4, "time_step_rank mamba_dt_rank"),
    (2, "n_groups num_groups"),
    (1, "mamba_n_groups"),
    # the other towers of a multimodal model
    (16, "image_size"),
    (8, "patch_size"),
    (3, "num_channels"),
)
SIZES: Mapping[str, int] = {name: size for size, names in _SIZES for name in names.split()}

DECODER = {"is_decoder": True}  # an encoder that may be a decoder, and is one here
LATENT = {"num_key_value_heads": 4, "head_dim": 4}  # keys and values from one latent vector: as many as queries
_DECODERS = (
    "bert bert-generation camembert data2vec-text electra ernie megatron-bert roberta roberta-prelayernorm roformer "
    "xlm-roberta xlm-roberta-xl"
)
_LATENTS = (
    "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa kimi_linear longcat_flash "
    "minicpm3 sarvam_mla youtu"
)
SLIDING_AND_FULL = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"] * 2
CONVOLUTIONS = ["conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "full_attention"]
DENSE_AND_SPARSE = ["dense", "sparse", "sparse", "dense", "sparse", "dense", "sparse", "sparse"]
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
ROPE_3D = {**ROPE, "mrope_section": [1, 1, 2]}
VARIETY: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(_DECODERS.split(), DECODER),
    **dict.fromkeys(_LATENTS.split(), LATENT),
    "bamba": {"attn_layer_indices": [2, 5]},
    "big_bird": {**DECODER, "attention_type": "original_full"},
    "cohere2_moe": {"mlp_layer_types": DENSE_AND_SPARSE},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"sliding_attention": ROPE_3D, "full_attention": ROPE_3D},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        "rope_parameters": ROPE,
    },
    "dory": {"n_input_layers": 2, "n_output_layers": 2},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * LAYERS, "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_text": {"num_key_value_heads": 4, "per_layer_config": {}},
    "ernie4_5_moe": {"moe_k": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 6},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "num_kv_shared_layers": 3,
        "activation_sparsity_pattern": [0.5] * 3 + [0.0] * 5,
    },
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"] * 4, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 4]]},
    "granitemoehybrid": {
        "layers_block_type": ["mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba", "attention"]
    },
    "granite_swa": {"layer_rope_theta": [1e4, 1e5, 1e4, 1e6, 1e4, 1e5, 1e4, 1e6]},
    "inkling_text": {"mlp_layer_types": DENSE_AND_SPARSE},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {**LATENT, "layer_types": ["linear_attention", "full_attention"] * 4},
    "laguna": {
        "layer_types": SLIDING_AND_FULL,
        "num_attention_heads_per_layer": [4, 8, 4, 4, 8, 4, 8, 4],
        "mlp_layer_types": DENSE_AND_SPARSE,
    },
    "lfm2": {"layer_types": CONVOLUTIONS},
    "lfm2_moe": {"layer_types": CONVOLUTIONS},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": SLIDING_AND_FULL, "mlp_layer_types": DENSE_AND_SPARSE},
    "minimax_m3_vl_text": {"mlp_layer_types": DENSE_AND_SPARSE},
    "ministral": {"layer_types": SLIDING_AND_FULL},
    "mllama_text_model": {"cross_attention_layers": [1, 4]},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mlp", "mamba", "moe", "attention", "mamba", "mlp"]},
    "qwen4_exp_text": {
        "eos_token_id": 2,
        "heads_per_ngram": 2,
        "hc_lowrank": 4,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "indexer_head_dim": 8,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 2,
        "make_ngram_vocab_size_divisible_by": 1,
        "ngram_vocab_size_base": 97,
        "ple_embed_dim": 32,
        "ple_layer_ids": [1, 5],
        "split_ngram_parts": 1,
    },
    "reformer": {
        **DECODER,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh"] * 4,
    },
    "rembert": {**DECODER, "input_embedding_size": 16, "output_embedding_size": 24},
    "roc_bert": {
        **DECODER,
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 20,
        "shape_embed_dim": 8,
        "shape_vocab_size": 20,
    },
    "smollm3": {"layer_types": SLIDING_AND_FULL, "use_sliding_window": True, "sliding_window": 6},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 16},
    "xmod": {**DECODER, "default_language": "en_XX"},
    "zamba": {
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "attn_layer_offset": 1,
        "attn_layer_period": 3,
        "n_mamba_heads": 2,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "layers_block_type": [
            *("linear_attention", "linear_attention", "hybrid") * 2,
            "linear_attention",
            "linear_attention",
        ],
        "n_mamba_heads": 8,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}

# Further configs: name -> type and what differs.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama, tied head": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma2, untied head": ("gemma2", {"tie_word_embeddings": False}),
    "gemma3n_text, no shared keys": ("gemma3n_text", {"num_kv_shared_layers": 0}),
    "qwen2, sliding above layer 3": ("qwen2", {"use_sliding_window": True, "sliding_window": 6}),
    "qwen2_moe, every second layer sparse": ("qwen2_moe", {"decoder_sparse_step": 2}),
    "qwen3_moe, two layers dense": ("qwen3_moe", {"mlp_only_layers": [1, 4]}),
    "qwen3_next, every second layer full": ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"] * 4}),
    "deepseek_v3, two layers dense": ("deepseek_v3", {**LATENT, "first_k_dense_replace": 2}),
    "deepseek_v3, an extra head": ("deepseek_v3", {**LATENT, "num_nextn_predict_layers": 1}),
    "glm_moe_dsa, every second selection shared": (
        "glm_moe_dsa",
        {**LATENT, "indexer_types": ["full", "shared"] * 4, "mlp_layer_types": DENSE_AND_SPARSE},
    ),
    "glm4_moe, two layers dense": ("glm4_moe", {"first_k_dense_replace": 2}),
    "llama4_text, every second layer sparse": ("llama4_text", {"interleave_moe_layer_step": 2}),
    "recurrent_gemma, two recurrent then attention": (
        "recurrent_gemma",
        {"block_types": ["recurrent", "recurrent", "attention"]},
    ),
    "smollm3, every third layer without positions": ("smollm3", {"no_rope_layer_interval": 3}),
    "jamba, attention in two layers": ("jamba", {"attn_layer_period": 4, "attn_layer_offset": 1}),
    "minimax, linear and full attention": ("minimax", {"layer_types": ["linear_attention", "full_attention"] * 4}),
    "zamba2, attention in a removed layer": (
        "zamba2",
        {"layers_block_type": [*("linear_attention", "hybrid", "linear_attention") * 2, "hybrid", "linear_attention"]},
    ),
    "rwkv, no halving": ("rwkv", {"rescale_every": 0}),
}

# Types whose other towers are large, and what they import: the extra `conformance`.
NEEDS = {"gemma3n": ("PIL", "timm")}
# Inputs of a layer, beside hidden states, that it returns beside them for the next one: places or names.
CARRIED: Mapping[str, tuple[int | str, ...]] = {"zaya": (1,), "hy_v4": ("prev_topk_indices",)}


def small(cls: Any, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments that make a config of that class small, its nested configs too."""
    try:
        known = cls().to_dict()
    except (StrictDataclassError, *UNBUILDABLE):  # its defaults do not pass its own checks: by the names it declares
        known = dict.fromkeys(name for base in cls.__mro__ for name in getattr(base, "__annotations__", {}))
    sizes = {
        name: size for name, size in SIZES.items() if name in known and not isinstance(known[name], bool | str | dict)
    }
    nested = {name: _nested(sub, known.get(name)) for name, sub in (getattr(cls, "sub_configs", None) or {}).items()}
    return {**sizes, **{name: value for name, value in nested.items() if value is not None}, **(extra or {})}


def _nested(cls: Any, default: Any) -> Any:
    model_type = default.get("model_type") if isinstance(default, dict) else None
    if model_type in CONFIG_MAPPING:
        cls = CONFIG_MAPPING[model_type]
    if not inspect.isclass(cls) or cls.__name__ == "AutoConfig":
        return None
    return cls(**small(cls, VARIETY.get(cls.model_type)))


def make(name: str, directory: Path) -> Path:
    """Save a random model of that type or variant."""
    model_type, extra = VARIANTS.get(name, (name, {}))
    cls = CONFIG_MAPPING[model_type]
    config = cls(**small(cls, {**VARIETY.get(model_type, {}), **extra}))
    model = zoo.random_model(config)
    with torch.no_grad():
        stored = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in stored and buffer.is_floating_point():  # routing biases and the like
                buffer.add_(torch.randn_like(buffer) * 0.01)
    model.save_pretrained(directory)
    if json.loads((directory / "config.json").read_text())["model_type"] not in TYPES:
        config.save_pretrained(
            directory
        )  # the text model of a multimodal one saves a config that cannot be opened alone
    return directory


def pass_over(model: PreTrainedModel, layers_path: str, removed: tuple[int, ...]) -> PreTrainedModel:
    """Make those layers return what enters them, in the form they return things in: independent of the walk.

    They run all the same, for what they leave in dictionaries; but not where they hand on what they were given, since that
    may be nothing yet.
    """
    carried = CARRIED.get(model.config.model_type)
    if not carried:
        return zoo.pass_over(model, layers_path, removed)

    def hand_on(*args, **kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden, *(args[slot] if isinstance(slot, int) else kwargs[slot] for slot in carried)

    for index in removed:
        model.get_submodule(layers_path)[index].forward = hand_on
    return model
