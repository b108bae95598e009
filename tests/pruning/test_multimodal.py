"""Models that see images: the language part is cut, what sees is copied, and the logits of a picture are the same."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, Gemma3Config, LlavaConfig, Qwen2_5_VLConfig

from plans import plan
from shortstack.architecture.anatomy import dissect, meta_model, shortened
from shortstack.architecture.selfcheck import built, check_cut
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError
from shortstack.healing.layer_choice import Partial
from shortstack.pruning import prune, prune_layers, verify
from zoo import IDS as SPECIAL
from zoo import SMALL, ZOO, pass_over, tiny

IMAGE = ZOO["gemma3"]["image_token_index"]
SOME = plan(8, layers="1,4,6")


def llava():
    vision = {"model_type": "clip_vision_model", **ZOO["gemma3"]["vision_config"], "projection_dim": 16}
    text = {"model_type": "llama", **SMALL}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, vision_feature_layer=-2)
    return config, {"pixel_values": torch.randn(1, 3, 16, 16)}


def gemma3():
    return Gemma3Config(**ZOO["gemma3"]), {"pixel_values": torch.randn(1, 3, 16, 16), "token_type_ids": None}


def qwen25_vl():
    vision = {
        "depth": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 32,
        "fullatt_block_indexes": [3, 7],
    }
    text = {**SMALL, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=94, vision_end_token_id=93
    )
    grid = torch.tensor([[1, 4, 4]])
    return config, {"pixel_values": torch.randn(16, 3 * 2 * 8 * 8), "image_grid_thw": grid}


def flattened(folder):
    """The fields of the text beside the model's own, as the hub's config of qwen2_5_vl has them."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    (folder / "config.json").write_text(json.dumps({**text, **config}))


def asked(seen):
    """Tokens with an image among them, and what is seen."""
    ids = torch.randint(3, 90, (1, 14), generator=torch.Generator().manual_seed(1))
    ids[0, 3:7] = IMAGE
    if "token_type_ids" in seen:
        seen = {**seen, "token_type_ids": (ids == IMAGE).long()}
    return {"input_ids": ids, **seen}


@pytest.mark.parametrize("kind", [llava, gemma3, qwen25_vl])
def test_language_part_is_cut_and_vision_is_copied(kind, tmp_path):
    torch.manual_seed(0)
    config, seen = kind()
    config.pad_token_id = SPECIAL["pad_token_id"]
    whole = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    whole.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "preprocessor_config.json").write_text('{"size": 16}')
    if kind is qwen25_vl:
        flattened(tmp_path / "source")
    checkpoint = Checkpoint.open(tmp_path / "source")
    cut = SOME if kind is not gemma3 else plan(8, layers="6-7")
    pruned = prune(checkpoint, cut, tmp_path / "small")
    assert (pruned.directory / "preprocessor_config.json").read_text() == '{"size": 16}'
    assert ("text_config" in pruned.config) == ("text_config" in checkpoint.config)
    assert verify(pruned, base=checkpoint).ok
    card = (pruned.directory / "README.md").read_text()
    assert "AutoModelForImageTextToText.from_pretrained" in card
    assert "pipeline_tag: image-text-to-text" in card
    loaded, report = AutoModelForImageTextToText.from_pretrained(
        pruned.directory, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    question = asked(seen)
    with torch.no_grad():
        before = whole(**question).logits
        found = loaded.eval()(**question).logits
        blind = loaded(**{**question, "pixel_values": 2 * question["pixel_values"]}).logits
        in_memory = prune_layers(
            AutoModelForImageTextToText.from_pretrained(checkpoint.directory, dtype=torch.float32).eval(), cut
        )
        assert torch.equal(in_memory(**question).logits, found)
        pass_over(whole, checkpoint.anatomy.layers_path, cut.removed)
        expected = whole(**question).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, before, atol=1e-3)
    assert not torch.allclose(found, blind, atol=1e-3), "the image is seen"


# fuyu reads a flat config since then, and unlimited_ocr came after 5.18
NEWER = pytest.mark.skipif("unlimited_ocr" not in CONFIG_MAPPING, reason="not in this release of transformers")


def nested(config):
    return config


def flat(config):
    return {**config.pop("text_config"), **config}


def under_another_name(config):
    return {"language_config": config.pop("text_config"), **config}


@pytest.mark.parametrize(
    ("model_type", "form"),
    [
        ("qwen2_vl", nested),
        ("qwen2_vl", flat),
        pytest.param("fuyu", flat, marks=NEWER),
        pytest.param("unlimited_ocr", under_another_name, marks=[NEWER, pytest.mark.slow]),
    ],
)
def test_config_is_written_in_the_form_it_is_stored(model_type, form, tmp_path):
    """The cut builds the kept layers, and an untied head is one to transformers."""
    text = {**SMALL, "num_key_value_heads": 4, "tie_word_embeddings": True}
    vision = {"vision_config": {"depth": 1}} if model_type == "qwen2_vl" else {}
    text |= {"fuyu": {"model_type": "persimmon"}}.get(model_type, {})
    config = CONFIG_MAPPING[model_type](text_config=text, tie_word_embeddings=True, **vision)
    stored = form(json.loads(config.to_json_string(use_diff=False)))
    (tmp_path / "config.json").write_text(json.dumps(stored))
    model = meta_model(tmp_path)
    anatomy = dissect(model, stored, tmp_path)
    assert (anatomy.layers, anatomy.tied) == (8, True)
    cut = shortened(stored, model, anatomy, SOME.kept, anatomy.layers_path)
    check_cut(cut, model, anatomy, SOME.kept, tmp_path)
    assert cut.keys() == stored.keys()
    checkpoint = SimpleNamespace(anatomy=anatomy, config=stored, blueprint=model)
    _, rebuilt = built(stored | Partial(untie_embeddings=True).config(checkpoint), tmp_path, trust_remote_code=False)
    assert (rebuilt.layers, rebuilt.tied) == (8, False)


def test_layers_that_image_features_enter_stay(tmp_path):
    model, kept = meta_model(tiny("llama")), [0, 1, 3, 4, 5, 6, 7]
    model.config.vision_config = SimpleNamespace(deepstack_visual_indexes=[8, 16, 24])
    asked = {"anatomy": dissect(model, model.config.to_dict(), tmp_path), "directory": tmp_path}
    with pytest.raises(ArchitectureError):
        check_cut({}, model, kept=kept, **asked)
