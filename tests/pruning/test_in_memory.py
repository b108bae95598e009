"""prune_layers(): a loaded model without layers computes what the pruned checkpoint does, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError, InputError, PlanError
from shortstack.pruning import prune, prune_layers
from zoo import tiny

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
GREEDY = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
SOME = plan(8, layers="1,4,6")


def loaded(folder, **how):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()


@torch.no_grad()
def computes(model):
    """Logits, and what it writes with its cache."""
    return model(input_ids=IDS, use_cache=False).logits, model.generate(IDS, **GREEDY)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(computes(one), computes(other), strict=True))


@pytest.mark.parametrize("model_type", ["gemma3", "gpt2"])
def test_prune_layers_equals_the_pruned_checkpoint(model_type, tmp_path):
    checkpoint = Checkpoint.open(tiny(model_type))
    cut = SOME if model_type == "gpt2" else plan(8, layers="6-7")
    model = loaded(checkpoint.directory)
    before = computes(model)
    assert prune_layers(model, cut) is model
    pruned = loaded(prune(checkpoint, cut, tmp_path / "out").directory)
    assert same(model, pruned)
    assert not torch.equal(before[0], computes(model)[0])
    text = model.config.get_text_config(decoder=True)
    assert text.num_hidden_layers == len(cut.kept)
    model.save_pretrained(tmp_path / "saved")
    assert same(loaded(tmp_path / "saved"), pruned), "it is saved as what it is"


def test_two_cuts_are_one():
    twice, once = loaded(tiny("gemma2")), loaded(tiny("gemma2"))
    prune_layers(prune_layers(twice, plan(8, layers="1,4")), plan(6, layers="4"))
    prune_layers(once, plan(8, layers="1,4,6"))
    assert same(prune_layers(loaded(tiny("gemma2")), {6, 1, 4}), once)
    assert same(twice, once)


def headless():
    return loaded(tiny("llama")).model


def classifier():
    return AutoModelForSequenceClassification.from_pretrained(tiny("llama"))


@pytest.mark.parametrize("wrong", [lambda: torch.nn.Linear(2, 2), headless, classifier])
def test_other_than_causal_language_models_are_refused(wrong):
    with pytest.raises(InputError) as error:
        prune_layers(wrong(), SOME)
    assert error.value.option == "model"


def test_a_refused_cut_changes_nothing(monkeypatch):
    def refusing(*_, **__):
        raise ArchitectureError("another")

    model = loaded(tiny("qwen2"))
    before, config = computes(model), model.config.to_dict()
    with pytest.raises(PlanError):
        prune_layers(model, plan(9, layers="3"))
    monkeypatch.setattr("shortstack.pruning.in_memory.check_cut", refusing)
    with pytest.raises(ArchitectureError):
        prune_layers(model, SOME)
    assert all(torch.equal(a, b) for a, b in zip(before, computes(model), strict=True))
    assert model.config.to_dict() == config


def test_adapters_stay_on_kept_layers(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(loaded(tiny("llama")), config).eval()
    expected = copy.deepcopy(adapted)
    for layer in sorted(SOME.removed, reverse=True):
        del expected.base_model.model.model.layers[layer]
    expected.base_model.model.config.num_hidden_layers = 5
    for number, layer in enumerate(expected.base_model.model.model.layers):
        layer.self_attn.layer_idx = number
    prune_layers(adapted, SOME)
    assert same(adapted, expected)
    adapted.save_pretrained(tmp_path / "adapter")
    base = prune_layers(loaded(tiny("llama")), SOME)
    assert same(peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), expected)


@pytest.mark.parametrize(
    "named",
    [
        {"target_modules": ["q_proj"], "layers_to_transform": [2, 5]},
        {"target_modules": r".*layers\.[2-5]\..*q_proj"},
        {"target_modules": ["model.layers.3.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.1\..*"},
    ],
)
def test_adapters_of_some_layers_are_refused(named):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(loaded(tiny("llama")), peft.LoraConfig(r=2, **named))
    beside = peft.get_peft_model(loaded(tiny("llama")), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    beside.add_adapter("other", peft.LoraConfig(r=2, **named))
    for model in (adapted, beside):
        with pytest.raises(InputError, match="adapter"):
            prune_layers(model, SOME)
        assert len(model.get_base_model().model.layers) == 8


def test_layers_offloaded_to_disk_are_still_found(tmp_path):
    from accelerate import disk_offload

    model = loaded(tiny("llama"))
    disk_offload(model, str(tmp_path / "weights"))
    model.hf_device_map = {"model.embed_tokens": "disk", **{f"model.layers.{layer}": layer for layer in range(8)}}
    prune_layers(model, SOME)
    assert same(model, prune_layers(loaded(tiny("llama")), SOME))
    assert model.hf_device_map == {
        "model.embed_tokens": "disk",
        **{f"model.layers.{new}": old for new, old in enumerate(SOME.kept)},
    }
