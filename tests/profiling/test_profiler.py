"""Counts from a config alone, against the paper's figures and what models hold; speeds by a clock of our own."""

import itertools
import json
import math
import statistics

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

from plans import plan
from shortstack.architecture.anatomy import dissect, meta_model
from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.profiling import Timing, profile
from shortstack.profiling.counts import cache_bytes, macs, parts
from shortstack.profiling.speed import Load, Rates, rates, ratio, speeds
from shortstack.pruning import prune
from zoo import SMALL, ZOO, make, tiny

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


@pytest.fixture
def clock(monkeypatch):
    """The hands of the clock that timing looks at."""
    now = [0.0]
    monkeypatch.setattr("shortstack.profiling.speed.time.perf_counter", lambda: now[0])
    return now


def ticking(model, clock, seconds):
    """Each forward of the model takes as long as seconds(number of the forward, tokens in it) says."""
    forwards = itertools.count()

    def tick(_module, _args, kwargs, _output):
        clock[0] += seconds(next(forwards), kwargs["input_ids"].shape[1])

    model.register_forward_hook(tick, with_kwargs=True)
    return model


def loaded():
    return Checkpoint.open(tiny("llama")).model(dtype=torch.float32)


def test_prefill_ends_at_the_first_token_and_decode_follows(clock):
    model = ticking(loaded(), clock, lambda _, tokens: 10.0 if tokens > 1 else 0.5)
    found = rates(model, Load(batch=3, prompt=20, new_tokens=8))
    assert found.prefill == pytest.approx(3 * 20 / 10)
    assert found.decode == pytest.approx(3 * 8 / (8 * 0.5))


def test_speed_is_the_median_of_the_runs_after_the_first(clock):
    """Runs of one prefill and eight more tokens; a token of the first run takes four seconds, of the second one, ..."""
    model = ticking(loaded(), clock, lambda number, tokens: 100.0 if tokens > 1 else (4.0, 1.0, 0.5, 2.0)[number // 9])
    (speed,) = speeds([model], Load(prompt=4, new_tokens=8), repeats=3)
    assert speed.decode_runs == (1.0, 2.0, 0.5)
    assert (speed.batch, speed.decode_tokens_per_s, speed.prefill_tokens_per_s) == (1, 1.0, 0.04)


def test_a_ratio_in_turns_survives_a_machine_that_changes_speed(clock):
    """The machine slows down tenfold half way; each pair still says 2."""
    runs = []
    models = [
        ticking(
            loaded(),
            clock,
            lambda _, tokens, own=own: (tokens > 1 and runs.append(1)) or own * (1.0 if len(runs) < 12 else 10.0),
        )
        for own in (1.0, 2.0)
    ]
    quick, half = speeds(models, Load(prompt=4, new_tokens=2), repeats=9)
    found = ratio(quick.decode_runs, half.decode_runs)
    assert max(quick.decode_runs) == pytest.approx(10 * min(quick.decode_runs))
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(("pairs", "place", "confidence"), [(5, 0, 30 / 32), (6, 0, 62 / 64), (12, 2, 1 - 158 / 4096)])
def test_the_interval_is_the_narrowest_that_covers_95_percent(pairs, place, confidence):
    values = [float(number) for number in range(1, pairs + 1)]
    found = ratio(values, [1.0] * pairs)
    assert (found.low, found.high) == (values[place], values[-1 - place])
    assert found.confidence == pytest.approx(confidence)
    assert found.value == statistics.median(values)


def test_each_turn_begins_with_the_next_model(monkeypatch):
    """Else the one that always runs second has the warmer machine."""
    ran = []
    monkeypatch.setattr("shortstack.profiling.speed.rates", lambda model, _: ran.append(model) or Rates(1.0, 1.0))
    speeds(["a", "b"], Load(), repeats=3)
    assert "".join(ran) == "abbaabba"


def test_profile_counts_what_the_checkpoint_holds(tmp_path):
    source = Checkpoint.open(tiny("llama"))
    pruned = prune(source, plan(8, layers="6-7"), tmp_path / "pruned")
    found = profile(pruned, base=source, timing=Timing("1,3", prompt=6, new_tokens=2, repeats=2)).to_dict()
    model = pruned.model(dtype=torch.float32)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["weight_bytes"] == sum(weight.numel() * 4 for weight in model.state_dict().values())
    assert found["kv_bytes_per_token"] == 6 * 2 * 2 * 8 * 4
    linear = sum(parameter.numel() for name, parameter in model.named_parameters() if "norm" not in name) - 96 * 32
    assert (found["macs"]["tokens"], found["macs"]["paper"]) == (6, 6 * linear + 13 * 2 * 6 * 32)
    assert found["macs"]["total"] - 6 * linear - 6 * 2 * 6 * 6 * 32 in (0, angles(6, 8))
    assert [speed["batch"] for speed in found["speed"]] == [1, 3]
    assert all(len(speed["decode_runs"]) == 2 and min(speed["decode_runs"]) > 0 for speed in found["speed"])
    assert found["peak_bytes"] > found["weight_bytes"]
    assert found["base"]["parameters"] == source.parameters
    for own, base, paired in zip(found["speed"], found["base"]["speed"], found["ratios"], strict=True):
        expected = statistics.median(a / b for a, b in zip(own["decode_runs"], base["decode_runs"], strict=True))
        assert paired["decode"]["value"] == pytest.approx(expected)
    json.dumps(found)


@pytest.mark.parametrize(("given", "sizes"), [(8, (8,)), ((3, 1, 3), (3, 1)), ("8, 1", (8, 1)), ((), ())])
def test_batch_sizes_are_one_number_or_several(given, sizes):
    assert Timing(batch_size=given).batch_sizes == sizes
    for wrong in ("1,none", "0", "-1", "1,"):
        with pytest.raises(InputError) as error:
            Timing(batch_size=wrong)
        assert error.value.option == "batch_size"


def test_without_batch_sizes_no_weight_is_read(monkeypatch):
    checkpoint = Checkpoint.open(tiny("gpt2"))
    monkeypatch.setattr(Checkpoint, "model", None)
    found = profile(checkpoint, timing=Timing((), prompt=64)).to_dict()
    assert (found["speed"], found["peak_bytes"], found["parameters"]) == ([], None, checkpoint.parameters)


def test_what_does_not_fit_in_memory_is_counted_and_not_timed(monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    monkeypatch.setattr("shortstack.profiling.profiler.available_memory", lambda _device: checkpoint.weight_bytes)
    monkeypatch.setattr(Checkpoint, "model", lambda *_args, **_options: pytest.fail("it was loaded"))
    found = profile(checkpoint, base=checkpoint, compute=Compute(device="cpu"))
    assert found.model.parameters.total == checkpoint.parameters
    assert (found.model.speed, found.peak_bytes, found.ratios) == ((), None, ())
    assert found.untimed


def test_more_tokens_than_positions_are_refused(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(make("gpt2", tmp_path / "model"))
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("was read"))
    for model, timing in ((checkpoint, Timing(prompt=40, new_tokens=24)), (tiny("llama"), Timing((), prompt=65))):
        with pytest.raises(InputError) as error:
            profile(model, base=checkpoint, timing=timing)
        assert error.value.option == "prompt"
    assert profile(checkpoint, timing=Timing((), prompt=64)).model.macs.tokens == 64
