"""Counts from a config alone: the paper's figures, and what models hold and multiply, counted by running them."""

import json
import math

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

from shortstack.architecture.anatomy import dissect, meta_model
from shortstack.profiling.counts import cache_bytes, macs, parts
from zoo import SMALL, ZOO

LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def on_meta(directory, config):
    """The model of a config, without weights, and its anatomy."""
    directory.mkdir(exist_ok=True)
    config.save_pretrained(directory)
    model = meta_model(directory)
    return model, dissect(model, json.loads((directory / "config.json").read_text()), directory)


def held(cache, tokens, window):
    """Bytes of a cache after so many tokens; layers with a window keep one token less than it has."""
    in_window = cache.per_token - cache.per_token_beyond
    return cache.fixed + cache.per_token_beyond * tokens + in_window * min(tokens, window - 1)


def angles(tokens, head_dim):
    """Rotary angles are a matrix product, positions by frequencies, in some releases of transformers."""
    return tokens * head_dim // 2


def test_llama_31_8b_has_the_papers_parameters_and_macs(tmp_path):
    """arXiv 2411.15558, table 9, for 64 tokens without eight layers: 6.29 B parameters and 368.65 G."""
    layers = 24
    model, anatomy = on_meta(tmp_path, LlamaConfig(num_hidden_layers=layers, **LLAMA_8B))
    found, counted = parts(model, anatomy), macs(model, tokens=64)
    assert (found.total, counted.paper) == (6_285_365_248, 368_654_680_064)
    scores = 2 * 64 * 64 * 4096 * layers  # queries by keys and weights by values, all heads together
    assert counted.total - 64 * (layers * 218_103_808 + 525_336_576) - scores in (0, angles(64, 128))
    assert counted.per_token == counted.total // 64
    assert found.parts == {
        "embedding": 525_336_576,
        "layers.self_attn": layers * 2 * (4096 * 4096 + 4096 * 1024),
        "layers.mlp": layers * 3 * 4096 * 14336,
        "layers.norms": layers * 2 * 4096,
        "norm": 4096,
        "head": 525_336_576,
    }
    assert cache_bytes(model).per_token == layers * 2 * 8 * 128 * 2  # keys and values of 8 heads in bf16
    assert all(not module._forward_hooks for module in model.modules()), "it is left as it was"


@pytest.mark.parametrize("model_type", ZOO)
def test_parts_are_all_parameters_and_a_tied_head_is_counted_once(model_type, tmp_path):
    model, anatomy = on_meta(tmp_path, CONFIG_MAPPING[model_type](**ZOO[model_type]))
    found = parts(model, anatomy)
    weights = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert found.total == sum(found.parts.values()) == sum(weights.values())
    assert found.tied is ("head" not in found.parts)


@torch.no_grad()
def real_cache_bytes(model, tokens):
    """Bytes of keys and values that transformers' cache holds after 1, 2, ... tokens, one fed after the other."""
    cache = None
    for _ in range(tokens):
        cache = model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True).past_key_values
        held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        yield sum(tensor.numel() * tensor.element_size() for tensor in held)


DEEPSEEK = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
CACHES = {
    **{name: ZOO[name] for name in ("llama", "mistral", "gemma3_text")},
    "deepseek_v3": {**SMALL, **DEEPSEEK, **LATENT, "num_key_value_heads": 4, "first_k_dense_replace": 1},
}


@pytest.mark.parametrize("model_type", CACHES)
def test_the_cache_is_as_large_as_a_real_one(model_type, tmp_path):
    config = CONFIG_MAPPING[model_type](**CACHES[model_type])
    model, _ = on_meta(tmp_path, config)
    real = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    found = cache_bytes(model.float())
    window = getattr(config, "sliding_window", None) or math.inf
    assert [held(found, tokens, window) for tokens in range(1, 18)] == list(real_cache_bytes(real.eval(), 17))
    assert found.per_token_beyond == found.per_token * {"mistral": 0, "gemma3_text": 2 / 8}.get(model_type, 1)


def test_recurrent_layers_hold_a_fixed_state(tmp_path):
    config = CONFIG_MAPPING["mamba"](
        vocab_size=96, hidden_size=16, state_size=4, num_hidden_layers=3, expand=2, conv_kernel=4
    )
    model, _ = on_meta(tmp_path, config)
    found = cache_bytes(model.float())
    assert found.per_token == 0
    assert found.fixed == 3 * 4 * (32 * 4 + 32 * 4)  # states and the last inputs of a convolution


def test_routed_experts_multiply_only_for_the_tokens_they_get(tmp_path):
    config = CONFIG_MAPPING["mixtral"](**ZOO["mixtral"], tie_word_embeddings=False)
    counted = macs(on_meta(tmp_path, config)[0], tokens=16)
    attention = 2 * (32 * 32 + 32 * 16)
    token = 8 * (attention + 32 * 4 + 2 * 3 * 32 * 48) + 32 * 96  # two of four experts, and the router
    assert counted.total - 16 * token - 8 * 2 * 16 * 16 * 32 in (0, angles(16, 8))
    assert counted.paper is None


@pytest.mark.parametrize(("model_type", "q_rank"), [("deepseek_v2", None), ("deepseek_v3", 8)])
def test_latent_attention_multiplies_as_its_matrices_say(model_type, q_rank, tmp_path):
    """Four heads, queries and keys of 8 + 4 numbers, values of 8, from latents of 8; two of four experts and one for all."""
    config = CONFIG_MAPPING[model_type](**{**CACHES["deepseek_v3"], "q_lora_rank": q_rank, "n_shared_experts": 1})
    queries = 32 * 8 + 8 * 4 * 12 if q_rank else 32 * 4 * 12
    attention = queries + 32 * (8 + 4) + 8 * 4 * (8 + 8) + 4 * 8 * 32
    dense, expert, router = 3 * 32 * 48, 3 * 32 * 16, 32 * 4
    token = 8 * attention + dense + 7 * (router + 3 * expert) + 32 * 96
    scores = 8 * 16 * 16 * 4 * (12 + 8)
    assert macs(on_meta(tmp_path, config)[0], tokens=16).total - 16 * token - scores in (0, angles(16, 4))


QUANTISED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_count_as_the_numbers_they_stand_for(method, tmp_path):
    """MACs, parameters and cache are those of the model that was quantised; bytes are another matter."""
    found = []
    for name, more in (("plain", {}), ("quantised", {"quantization_config": QUANTISED[method]})):
        model, anatomy = on_meta(tmp_path / name, CONFIG_MAPPING["llama"](**ZOO["llama"], **more))
        found.append((parts(model, anatomy), macs(model, tokens=4), cache_bytes(model.float())))
    plain, quantised = found
    assert quantised == plain
    weights = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**ZOO["llama"])).parameters()
    assert plain[0].total == sum(weight.numel() for weight in weights)


def test_what_depends_on_values_is_not_counted(tmp_path):
    config = CONFIG_MAPPING["jetmoe"](
        vocab_size=96, hidden_size=16, num_hidden_layers=2, kv_channels=8, intermediate_size=8, num_local_experts=4
    )
    model, anatomy = on_meta(tmp_path, config)
    assert macs(model, tokens=4) is None
    assert cache_bytes(model) is None
    assert parts(model, anatomy).total == sum(parameter.numel() for parameter in model.parameters())
