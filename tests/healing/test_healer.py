"""Partial healing against the same gradients by plain autograd on the whole model, and what heal() writes and refuses."""

import json
from dataclasses import replace

import architectures
import pytest
import torch
from transformers import AutoModelForCausalLM

from learning import EXAMPLES, SHORT, learning
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder, memory
from shortstack.decoder.wrapping import LOGIT_BYTES
from shortstack.errors import ArchitectureError, CheckpointError, InputError, TrainingError
from shortstack.healing import Full, HealingConfig, Lora, Partial, heal, healing_memory
from shortstack.healing.frozen import Freezer
from shortstack.healing.learner import padded
from shortstack.profiling.speed import forward_speed
from zoo import ZOO, make, speaking, tiny

pytestmark = pytest.mark.usefixtures("own_cache")


def whole_model_gradients(checkpoint: Checkpoint, names: set[str]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the named parameters by plain transformers on the padded batch."""
    model, batch = checkpoint.model(dtype=torch.float32), padded(EXAMPLES)
    lengths = torch.tensor([len(example.ids) for example in EXAMPLES])
    mask = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
    logits = model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in model.named_parameters() if name in names}


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        *((name, Partial(train_layers="3-4,6")) for name in ZOO),
        ("llama", Partial(train_last=0)),
        ("llama", Partial(train_last=8)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gradients_from_the_cached_prefix_equal_the_whole_models(model_type, method):
    checkpoint = Checkpoint.open(tiny(model_type))
    frozen, learner = learning(checkpoint, method)
    batch = frozen.collate(range(3))
    loss = learner(**batch, num_items_in_batch=(batch["labels"] != -100).sum())["loss"]
    loss.backward()
    found = {
        f"{name}.{rest}": weight.grad
        for name, module in zip(learner.names, learner.trained, strict=True)
        for rest, weight in module.named_parameters()
    }
    expected_loss, expected = whole_model_gradients(checkpoint, set(found))
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=2e-4, msg=name)


@pytest.mark.parametrize("method", [Partial(train_layers="3-4,6"), Full()], ids=lambda method: method.name)
def test_projections_around_the_layers_are_trained(method, tmp_path):
    checkpoint = Checkpoint.open(make("opt", tmp_path, word_embed_proj_dim=16, max_position_embeddings=256))
    frozen, learner = learning(checkpoint, method)
    batch = frozen.collate(range(3))
    loss = learner(**batch, num_items_in_batch=(batch["labels"] != -100).sum())["loss"]
    loss.backward()
    found = {name: weight.grad for name, weight in learner.named_weights()}
    expected_loss, expected = whole_model_gradients(checkpoint, set(found))
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=1e-6)
    assert ("model.decoder.project_out.weight" in found) is isinstance(method, Full)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=2e-4, msg=name)
    assert forward_speed(checkpoint, dtype=torch.float32, device="cpu") > 0


def test_several_states_of_a_token_are_refused(tmp_path):
    source = Checkpoint.open(architectures.make("gemma3n_text", tmp_path / "source"))
    frozen, learner = learning(source, Full())
    with pytest.raises(ArchitectureError, match="not one for each of 3 x 12 tokens"):
        learner(**frozen.collate(range(3)))
    source = Checkpoint.open(architectures.make("gemma3n_text, no shared keys", tmp_path / "bare"))
    with pytest.raises(ArchitectureError):  # of early releases layers hand on more
        learning(source, Partial(train_last=2))
    source = Checkpoint.open(architectures.make("deepseek_v4", tmp_path / "other"))
    with pytest.raises(ArchitectureError):
        learning(source, Partial(train_last=2))


def test_sample_longer_than_the_positions_is_refused(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", "gpt2"))
    for method in (Full(), Partial(train_last=1)):
        with pytest.raises(InputError) as refused:
            heal(source, tmp_path / "out", replace(SHORT, method=method, max_length=128))
        assert refused.value.option == "max_length"


def changed(before: Checkpoint, after: Checkpoint) -> set[str]:
    one, other = (model.model(dtype=torch.float32).state_dict() for model in (before, after))
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_partial_changes_the_tail_and_nothing_else(source, tmp_path):
    result = heal(source, tmp_path / "healed", replace(SHORT, max_samples=64, method=Partial(train_last=2)))
    healed, weights = Checkpoint.open(tmp_path / "healed"), source.model(dtype=torch.float32).state_dict()
    expected = {
        name for name in weights if name.startswith(("model.layers.6.", "model.layers.7.", "model.norm", "lm_head"))
    }
    assert changed(source, healed) == expected
    assert result.trainable_parameters == sum(weights[name].numel() for name in expected)
    assert result.trained_layers == (6, 7)
    held_out = [loss for _, loss in result.history.held_out]
    assert held_out[-1] < held_out[0]
    record = json.loads((tmp_path / "healed" / "shortstack.json").read_text())
    assert record["verb"] == "heal"
    config = record["healing"]["config"]
    assert (config["method"], config["train_last"], config["learning_rate"]) == ("partial", 2, 1e-2)


def test_tied_head_stays_frozen_unless_untied(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", tie_word_embeddings=True))
    heal(source, tmp_path / "tied", replace(SHORT, method=Partial(train_last=1)))
    tied, embedding = Checkpoint.open(tmp_path / "tied"), "model.embed_tokens.weight"
    assert tied.anatomy.tied
    assert not changed(source, tied) & {embedding, "lm_head.weight"}

    result = heal(source, tmp_path / "untied", replace(SHORT, method=Partial(train_last=1, untie_embeddings=True)))
    untied = Checkpoint.open(tmp_path / "untied")
    assert not untied.anatomy.tied
    assert untied.config["tie_word_embeddings"] is False
    assert changed(source, untied) & {embedding, "lm_head.weight"} == {"lm_head.weight"}
    matrix = source.vocabulary * source.width
    assert untied.parameters - source.parameters == matrix < result.trainable_parameters


def test_untied_head_of_a_multimodal_model_is_loaded(tmp_path):
    text = {**ZOO["gemma3"]["text_config"], "vocab_size": 384}
    source = Checkpoint.open(speaking(tmp_path / "source", "gemma3", text_config=text))
    heal(source, tmp_path / "out", replace(SHORT, method=Partial(train_last=1, untie_embeddings=True)))
    untied = Checkpoint.open(tmp_path / "out")
    assert source.anatomy.tied
    assert not untied.anatomy.tied
    model = untied.model(dtype=torch.float32, strict=True)
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_tail_that_shares_with_frozen_layers_is_refused(tmp_path):
    source = Checkpoint.open(architectures.make("gemma3n_text", tmp_path / "source"))
    with pytest.raises(ArchitectureError, match="also share keys and values"):
        learning(source, Partial(train_last=2))


def test_impossible_heads_and_layers_are_refused(source, tmp_path):
    tied = Checkpoint.open(speaking(tmp_path / "tied", tie_word_embeddings=True))
    cases = [
        (tied, {"train_head": True}, "train_head"),
        (source, {"untie_embeddings": True}, "untie_embeddings"),
        (tied, {"train_last": 9}, "train_last"),
        (tied, {"train_layers": "3,8"}, "train_layers"),
        (tied, {"train_layers": "3 to 8"}, "train_layers"),
        (tied, {"untie_embeddings": True, "train_head": False}, "untie_embeddings"),
    ]
    for checkpoint, options, option in cases:
        with pytest.raises(InputError) as refused:
            heal(checkpoint, tmp_path / "out", replace(SHORT, method=Partial(**options)))
        assert refused.value.option == option
    assert not (tmp_path / "out").exists()


def test_frozen_prefix_is_computed_once_and_cached(source, tmp_path, monkeypatch):
    walked, original = [], Decoder.through

    def counted(self, walks, layers, **options):
        walked.append(list(layers))
        return original(self, walks, layers, **options)

    monkeypatch.setattr(Decoder, "through", counted)
    two = replace(SHORT, method=Partial(train_last=2), num_train_epochs=2, learning_rate=1e-3)
    heal(source, tmp_path / "a", two)
    assert walked == [list(range(6))], "once, whatever the epochs"
    heal(source, tmp_path / "b", two)
    assert len(walked) == 1
    assert not changed(Checkpoint.open(tmp_path / "a"), Checkpoint.open(tmp_path / "b"))
    heal(source, tmp_path / "c", replace(two, method=Partial(train_last=1)))
    assert walked[1:] == [list(range(7))]


def keys(folder):
    """The names of cached states and of a teacher's predictions."""
    checkpoint = Checkpoint.open(folder)
    freezer = Freezer(checkpoint, torch.float32, "cpu", HealingConfig("pydoc", loss="distill"), checkpoint)
    frozen = freezer.planned(EXAMPLES, 2)
    return {frozen.states.path.name, frozen.teacher.path.name}


def test_edited_file_or_other_libraries_change_the_cache_keys(tmp_path, monkeypatch):
    folder = speaking(tmp_path / "m")
    before = keys(folder)
    assert keys(folder) == before
    for name, field, value in (
        ("config.json", "rope_theta", 5e5),
        ("tokenizer_config.json", "model_max_length", 77),
        ("generation_config.json", "temperature", 0.5),
    ):
        text = (folder / name).read_text()
        (folder / name).write_text(json.dumps({**json.loads(text), field: value}))
        assert not before & keys(folder), name
        (folder / name).write_text(text)
    monkeypatch.setattr("shortstack.machine.cache.library_versions", lambda: {"torch": "99"})
    assert not before & keys(folder)


def test_interrupted_walk_leaves_no_file(tmp_path):
    def stop(_stage, done, _total, note):
        if done == 2:
            raise KeyboardInterrupt

    freezer = Freezer(Checkpoint.open(tiny("llama")), torch.float32, "cpu", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        freezer.fill(freezer.planned(EXAMPLES, 5))
    assert list((tmp_path / "cache" / "activations").iterdir()) == []


def test_diverging_run_is_an_error_and_leaves_nothing(source, tmp_path):
    config = replace(SHORT, num_train_epochs=4, learning_rate=1e30, warmup_steps=0, max_grad_norm=1e30)
    with pytest.raises(TrainingError):
        heal(source, tmp_path / "out", config)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_broken_record_or_cache_limit_is_refused_before_data_is_read(tmp_path, monkeypatch):
    folder = speaking(tmp_path / "model")
    monkeypatch.setattr("shortstack.healing.healer.HealingRun.examples", lambda *_: pytest.fail("data were read"))
    with monkeypatch.context() as context:
        context.setenv("SHORTSTACK_CACHE_LIMIT", "-5GB")
        with pytest.raises(InputError, match="-5GB"):
            heal(folder, tmp_path / "out", "pydoc")
    (folder / "shortstack.json").write_text("{}")
    with pytest.raises(CheckpointError):
        heal(folder, tmp_path / "out", "pydoc")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("method", [Partial(train_last=2), Lora(), Full()], ids=lambda method: method.name)
def test_memory_is_estimated_from_weights_state_activations_and_logits(method, source, monkeypatch, tmp_path):
    if isinstance(method, Lora):
        pytest.importorskip("peft")
    config = replace(SHORT, method=method, per_device_train_batch_size=4)
    monkeypatch.setattr("shortstack.healing.memory.fast_bfloat16", lambda _device: False)
    found = healing_memory(source, config)
    layers = 2 if isinstance(method, Partial) else 8
    weights = sum(source.sizes.layer_parameters[-layers:]) + source.sizes.other_parameters
    learner = learning(source, method)[1]
    trained, tokens = learner.trainable_parameters, 4 * 32
    frozen = weights if isinstance(method, Lora) else weights - trained
    logits = memory.LOGIT_COPIES * LOGIT_BYTES[True]
    activations = tokens * source.width * layers * memory.ACTIVATION_BYTES
    assert found.nbytes == 4 * frozen + 16 * trained + activations + logits
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: 10_000)
    with pytest.raises(InputError) as refused:
        heal(source, tmp_path / "out", config)
    assert refused.value.option == "method"


def test_dropout_is_on_in_training_alone():
    pytest.importorskip("peft")
    _, learner = learning(Checkpoint.open(tiny("llama")), Lora(lora_dropout=0.5))
    for training in (True, False):
        learner.train(training)
        assert {each.training for layer in learner.decoder.layers for each in layer.modules()} == {training}


def test_gradient_checkpointing_is_switched_on(source, tmp_path, monkeypatch):
    def seen(learner, *_args, **_how):
        assert all(layer.gradient_checkpointing for layer in learner.decoder.layers)
        raise KeyboardInterrupt

    monkeypatch.setattr("shortstack.healing.healer.train", seen)
    with pytest.raises(KeyboardInterrupt):
        heal(source, tmp_path / "out", replace(SHORT, gradient_checkpointing=True))


def test_gradient_checkpointing_gives_the_same_gradients():
    found, passes = [], []
    for twice in (False, True):
        frozen, learner = learning(Checkpoint.open(tiny("llama")), Full())
        if twice:
            learner.decoder.model.gradient_checkpointing_enable({"use_reentrant": False})
        count = []
        learner.decoder.layers[6].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        learner.train()(**frozen.collate(range(3)))["loss"].backward()
        found.append([weight.grad for weight in learner.parameters()])
        passes.append(len(count))
    assert passes[1] == passes[0] + 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_healed_experts_are_stored_one_by_one(tmp_path, monkeypatch):
    """In memory they are one tensor."""
    from shortstack.healing.learner import Learner

    source, trained, original = Checkpoint.open(speaking(tmp_path / "source", "mixtral")), [], Learner.trained_tensors
    monkeypatch.setattr(Learner, "trained_tensors", lambda tail: trained.append(original(tail)) or trained[-1])
    heal(source, tmp_path / "healed", replace(SHORT, method=Partial(train_last=1)))
    healed = Checkpoint.open(tmp_path / "healed")
    assert source.tensors.keys() == healed.tensors.keys()
    assert any(".experts.3." in name for name in healed.tensors)
    expected = source.model(dtype=torch.float32)
    expected.load_state_dict(trained[0], strict=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "healed", dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.state_dict().items())
    assert {name for name in changed(source, healed) if ".layers." in name} == {
        name for name in loaded if name.startswith("model.layers.7.")
    }
