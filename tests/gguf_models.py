"""Tiny random GGUF models of several architectures, made by gguf-py, and what llama.cpp computes of them."""

from __future__ import annotations

import gguf
import numpy as np

VOCABULARY, WIDTH, HEADS, KV_HEADS, INNER = 260, 64, 4, 2, 96
HEAD = WIDTH // HEADS
PROMPT = [7, 30, 2, 111, 95, 3, 64, 8, 8, 201, 17, 54, 33, 5, 180, 29, 77, 12, 90, 41]
SLIDING = 4  # tokens; fewer than the prompt has
# Zero in a silent layer, which then adds nothing.
SILENT = ("attn_output", "ffn_down", "ffn_down_exps", "ffn_down_shexp", "shortconv.out_proj")


class Maker:
    """A model of one architecture. silent: layers that leave what passes them as it is. kind: of matrices, else float32."""

    def __init__(
        self, path, architecture, layers, silent=(), seed=0, tied=False, norm="output_norm", kind=None, **fields
    ):
        self.path, self.silent, self.kind = path, set(silent), kind
        self.random = np.random.default_rng(seed)
        self.writer = writer = gguf.GGUFWriter(path, architecture)
        usual = {
            "block_count": layers,
            "context_length": 128,
            "embedding_length": WIDTH,
            "feed_forward_length": INNER,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS,
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": HEAD,
            "rope.freq_base": 10000.0,
            "vocab_size": VOCABULARY,
        }
        for name, value in {**usual, **fields}.items():
            self._field(f"{architecture}.{name}", value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([*"t0123456789", *(f"t{number}" for number in range(VOCABULARY - 11))])
        writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
        writer.add_token_merges(["t 1"])
        writer.add_bos_token_id(256)
        writer.add_eos_token_id(257)
        writer.add_add_bos_token(False)
        self.tensor("token_embd.weight", VOCABULARY, WIDTH, scale=0.2 if tied else 1.0)
        self.tensor(f"{norm}.weight", WIDTH, norm=True)
        if not tied:
            self.tensor("output.weight", VOCABULARY, WIDTH, scale=1.0)

    def _field(self, name, value):
        if isinstance(value, list):
            self.writer.add_array(name, value)
        elif isinstance(value, bool):
            self.writer.add_bool(name, value)
        elif isinstance(value, float):
            self.writer.add_float32(name, value)
        else:
            self.writer.add_uint32(name, value)

    def tensor(self, name, *shape, scale=0.3, norm=False):
        values = 1 + 0.1 * self.random.normal(size=shape) if norm else scale * self.random.normal(size=shape)
        values = values.astype("float32")
        if self.kind and len(shape) == 2:
            self.writer.add_tensor(name, gguf.quants.quantize(values, self.kind), raw_dtype=self.kind)
        else:
            self.writer.add_tensor(name, values)

    def block(self, layer, **shapes):
        """Tensors of a layer by name, with _ for a dot; those whose names end in norm are near 1."""
        for name, shape in shapes.items():
            stem, _, kind = name.rpartition("_")
            stem = stem.replace("__", ".")
            scale = 0.0 if layer in self.silent and stem in SILENT else 0.3
            self.tensor(f"blk.{layer}.{stem}.{kind}", *shape, scale=scale, norm=stem.endswith("norm"))

    def attention(self, layer, heads=HEADS, kv_heads=KV_HEADS):
        self.block(
            layer,
            attn_norm_weight=(WIDTH,),
            attn_q_weight=(heads * HEAD, WIDTH),
            attn_k_weight=(kv_heads * HEAD, WIDTH),
            attn_v_weight=(kv_heads * HEAD, WIDTH),
            attn_output_weight=(WIDTH, heads * HEAD),
        )

    def dense(self, layer, inner=INNER):
        self.block(
            layer,
            ffn_norm_weight=(WIDTH,),
            ffn_gate_weight=(inner, WIDTH),
            ffn_up_weight=(inner, WIDTH),
            ffn_down_weight=(WIDTH, inner),
        )

    def experts(self, layer, count=4, shared=False):
        self.block(
            layer,
            ffn_norm_weight=(WIDTH,),
            ffn_gate_inp_weight=(count, WIDTH),
            ffn_gate_exps_weight=(count, INNER, WIDTH),
            ffn_up_exps_weight=(count, INNER, WIDTH),
            ffn_down_exps_weight=(count, WIDTH, INNER),
        )
        if shared:
            self.block(
                layer,
                ffn_gate_shexp_weight=(INNER, WIDTH),
                ffn_up_shexp_weight=(INNER, WIDTH),
                ffn_down_shexp_weight=(WIDTH, INNER),
            )

    def close(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


QK_NORMS = {"attn_q_norm_weight": (HEAD,), "attn_k_norm_weight": (HEAD,)}
POST_NORMS = {"post_attention_norm_weight": (WIDTH,), "post_ffw_norm_weight": (WIDTH,)}
EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": INNER}


def llama(path, layers=8, *, architecture="llama", beside=None, mlp=Maker.dense, after=None, **how):
    """beside, after: what attention and the whole layer have more."""
    made = Maker(path, architecture, layers, **how)
    for layer in range(layers):
        made.attention(layer)
        made.block(layer, **(beside or {}))
        mlp(made, layer)
        made.block(layer, **(after or {}))
    return made.close()


def smollm3(path, **how):
    """Every fourth layer has no positions, by its number."""
    return llama(path, architecture="smollm3", **how)


def qwen2(path, **how):
    biases = {"attn_q_bias": (WIDTH,), "attn_k_bias": (KV_HEADS * HEAD,), "attn_v_bias": (KV_HEADS * HEAD,)}
    return llama(path, architecture="qwen2", beside=biases, **how)


def qwen3(path, **how):
    return llama(path, architecture="qwen3", beside=QK_NORMS, **how)


def qwen3moe(path, **how):
    return llama(path, architecture="qwen3moe", beside=QK_NORMS, mlp=Maker.experts, **EXPERTS, **how)


def deepseek(path, **how):
    """The first layers are dense, the others have experts."""
    fields = {"leading_dense_block_count": 3, **EXPERTS, "expert_shared_count": 1, "expert_weights_scale": 1.0}

    def mlp(made, layer):
        made.dense(layer) if layer < 3 else made.experts(layer, shared=True)

    return llama(path, architecture="deepseek", mlp=mlp, **fields, **how)


def gemma2(path, **how):
    fields = {"attention.sliding_window": SLIDING, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return llama(path, architecture="gemma2", after=POST_NORMS, tied=True, **fields, **how)


def gemma3(path, layers=12, **how):
    fields = {"attention.sliding_window": SLIDING, "beside": QK_NORMS, "after": POST_NORMS}
    return llama(path, layers, architecture="gemma3", tied=True, **fields, **how)


def phi3(path, layers=8, **how):
    made = Maker(path, "phi3", layers, **{"rope.scaling.original_context_length": 128}, **how)
    for layer in range(layers):
        made.block(
            layer,
            attn_norm_weight=(WIDTH,),
            attn_qkv_weight=(WIDTH + 2 * KV_HEADS * HEAD, WIDTH),
            attn_output_weight=(WIDTH, WIDTH),
            ffn_norm_weight=(WIDTH,),
            ffn_up_weight=(2 * INNER, WIDTH),
            ffn_down_weight=(WIDTH, INNER),
        )
    return made.close()


def lfm2(path, layers=8, **how):
    """Layers of attention among short convolutions, by an array."""
    kv_heads = [KV_HEADS if layer % 3 == 2 else 0 for layer in range(layers)]
    fields = {"attention.head_count_kv": kv_heads, "shortconv.l_cache": 3}
    made = Maker(path, "lfm2", layers, tied=True, norm="token_embd_norm", **fields, **how)
    for layer, attention in enumerate(kv_heads):
        if attention:
            made.attention(layer)
            made.block(layer, **QK_NORMS)
        else:
            made.block(
                layer,
                attn_norm_weight=(WIDTH,),
                shortconv__conv_weight=(WIDTH, 3),
                shortconv__in_proj_weight=(3 * WIDTH, WIDTH),
                shortconv__out_proj_weight=(WIDTH, WIDTH),
            )
        made.dense(layer)
    return made.close()


def openelm(path, layers=8, **how):
    """Heads and the feed-forward's width differ by layer."""
    heads = [2 if layer < layers // 2 else 4 for layer in range(layers)]
    widths = [64 + 32 * (layer % 3) for layer in range(layers)]
    by_layer = {
        "attention.head_count": heads,
        "attention.head_count_kv": [count // 2 for count in heads],
        "feed_forward_length": widths,
    }
    made = Maker(path, "openelm", layers, tied=True, **by_layer, **how)
    for layer, (count, width) in enumerate(zip(heads, widths, strict=True)):
        made.block(
            layer,
            attn_norm_weight=(WIDTH,),
            attn_qkv_weight=(2 * count * HEAD, WIDTH),
            attn_q_norm_weight=(HEAD,),
            attn_k_norm_weight=(HEAD,),
            attn_output_weight=(WIDTH, count * HEAD),
        )
        made.dense(layer, inner=width)
    return made.close()


MAKERS = {
    maker.__name__: maker
    for maker in (llama, smollm3, qwen2, qwen3, qwen3moe, deepseek, gemma2, gemma3, phi3, lfm2, openelm)
}


def fields(path):
    """The metadata of a file, read by gguf-py."""
    found = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in found.items() if not name.startswith("GGUF.")}


def serving(path):
    """llama.cpp in this process, with a file loaded."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 128, 1, False
    params.cpuparams.n_threads = 1
    return xllamacpp.Server(params)


def steps(server, prompt, tokens, likeliest):
    """ln p of the likeliest tokens at each step of a greedy continuation."""
    asked = {"prompt": list(prompt), "n_predict": tokens, "n_probs": likeliest, "temperature": 0, "ignore_eos": True}
    found = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    return [{each["id"]: each["logprob"] for each in step["top_logprobs"]} for step in found]


def probabilities(path, prompt=tuple(PROMPT), tokens=3):
    """ln p of the 20 likeliest tokens at each step of a greedy continuation, by llama.cpp: one dict a step."""
    return steps(serving(path), prompt, tokens, 20)


def token_losses(path, ids, *, vocabulary):
    """-ln p of each token after the first, by llama.cpp."""
    server = serving(path)
    return [-steps(server, ids[:end], 1, vocabulary)[0][ids[end]] for end in range(1, len(ids))]
