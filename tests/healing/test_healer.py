"""Partial healing against the same gradients by plain autograd on the whole model, and what heal() writes and refuses."""

import json
from dataclasses import replace

import architectures
import pytest
import torch
from transformers import AutoModelForCausalLM

from learning import EXAMPLES, SHORT, learning
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.own_text import Writer
from shortstack.errors import ArchitectureError, CheckpointError, InputError, TrainingError
from shortstack.healing import Full, HealingTask, Lora, Objective, Partial, Schedule, heal
from shortstack.healing.frozen import Freezer
from shortstack.healing.learner import padded
from shortstack.machine.device import Compute
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
def test_gradients_from_the_cached_prefix_are_those_of_the_whole_model(model_type, method):
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
def test_what_projects_between_the_embedding_and_the_layers_is_passed_and_trained(method, tmp_path):
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


def test_several_states_of_a_token_are_refused_in_words(tmp_path):
    source = Checkpoint.open(architectures.make("gemma3n_text", tmp_path / "source"))
    frozen, learner = learning(source, Full())
    with pytest.raises(ArchitectureError, match="expected one for each of 3 x 12 tokens"):
        learner(**frozen.collate(range(3)))
    source = Checkpoint.open(architectures.make("gemma3n_text, no shared keys", tmp_path / "bare"))
    with pytest.raises(ArchitectureError, match=r"expected one for each of|hand on hidden states alone"):
        learning(source, Partial(train_last=2))  # of early releases layers hand on more
    source = Checkpoint.open(architectures.make("deepseek_v4", tmp_path / "other"))
    with pytest.raises(ArchitectureError, match="numbers for each of"):
        learning(source, Partial(train_last=2))


def test_a_sample_longer_than_the_table_of_positions_is_refused_whatever_trains(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", "gpt2"))
    for method in (Full(), Partial(train_last=1)):
        task = replace(SHORT, method=method, data=replace(SHORT.data, max_length=128))
        with pytest.raises(InputError, match="max_length: expected at most 64 tokens"):
            heal(source, tmp_path / "out", task)


def changed(before: Checkpoint, after: Checkpoint) -> set[str]:
    one, other = (model.model(dtype=torch.float32).state_dict() for model in (before, after))
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_what_healing_changes_is_the_tail_and_nothing_else(source, tmp_path):
    data = replace(SHORT.data, max_samples=64)
    result = heal(source, tmp_path / "healed", replace(SHORT, data=data, method=Partial(train_last=2)))
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
    unset = dict.fromkeys(("train_layers", "train_head"))
    assert record["healing"]["method"] == {"name": "partial", "train_last": 2, "untie_embeddings": False, **unset}


def test_a_tied_head_stays_tied_and_frozen_unless_untied(tmp_path):
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


def test_an_untied_head_of_a_multimodal_model_is_written_where_it_is_read(tmp_path):
    text = {**ZOO["gemma3"]["text_config"], "vocab_size": 384}
    source = Checkpoint.open(speaking(tmp_path / "source", "gemma3", text_config=text))
    heal(source, tmp_path / "out", replace(SHORT, method=Partial(train_last=1, untie_embeddings=True)))
    untied = Checkpoint.open(tmp_path / "out")
    assert source.anatomy.tied
    assert not untied.anatomy.tied
    model = untied.model(dtype=torch.float32, strict=True)
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_a_tail_that_shares_with_frozen_layers_is_refused(tmp_path):
    source = Checkpoint.open(architectures.make("gemma3n_text", tmp_path / "source"))
    with pytest.raises(ArchitectureError, match="also share keys and values"):
        learning(source, Partial(train_last=2))


def test_impossible_heads_and_depths_are_refused(source, tmp_path):
    tied = Checkpoint.open(speaking(tmp_path / "tied", tie_word_embeddings=True))
    cases = [
        (tied, Partial(train_head=True), "tied"),
        (source, Partial(untie_embeddings=True), "untie_embeddings"),
        (tied, Partial(train_last=9), "8 layers"),
        (tied, Partial(train_layers="3,8"), "0 to 7"),
    ]
    for checkpoint, method, complaint in cases:
        with pytest.raises(InputError, match=complaint):
            heal(checkpoint, tmp_path / "out", replace(SHORT, method=method))
    assert not (tmp_path / "out").exists()


def test_an_untied_head_that_is_to_be_frozen_is_refused():
    with pytest.raises(InputError, match="untie_embeddings"):
        Partial(untie_embeddings=True, train_head=False)


def test_the_prefix_is_walked_once_and_found_again_by_content(source, tmp_path, monkeypatch):
    walked, original = [], Decoder.through

    def counted(self, walks, layers, **options):
        walked.append(list(layers))
        return original(self, walks, layers, **options)

    monkeypatch.setattr(Decoder, "through", counted)
    two = HealingTask(SHORT.data, Partial(train_last=2), schedule=Schedule(num_train_epochs=2, learning_rate=1e-3))
    heal(source, tmp_path / "a", two)
    assert walked == [list(range(6))], "once, whatever the epochs"
    heal(source, tmp_path / "b", two)
    assert len(walked) == 1
    assert not changed(Checkpoint.open(tmp_path / "a"), Checkpoint.open(tmp_path / "b"))
    heal(source, tmp_path / "c", replace(two, method=Partial(train_last=1)))
    assert walked[1:] == [list(range(7))]


def entries(folder):
    """The cache's entries of the frozen states, of a teacher's predictions and of the model's own texts."""
    checkpoint = Checkpoint.open(folder)
    objective = Objective("distill")
    frozen = Freezer(checkpoint, torch.float32, "cpu", objective, checkpoint).planned(EXAMPLES, 2)
    own = Writer(checkpoint, Compute(dtype="float32", device="cpu")).key
    return {"states": frozen.states.path.name, "teacher": frozen.teacher.path.name, "own texts": own}


def test_an_edited_file_or_other_libraries_name_other_entries(tmp_path, monkeypatch):
    folder = speaking(tmp_path / "m")
    before = entries(folder)
    assert entries(folder) == before
    for name, field, value in (
        ("config.json", "rope_theta", 5e5),
        ("tokenizer_config.json", "model_max_length", 77),
        ("generation_config.json", "temperature", 0.5),
    ):
        text = (folder / name).read_text()
        (folder / name).write_text(json.dumps({**json.loads(text), field: value}))
        assert not set(before.values()) & set(entries(folder).values()), name
        (folder / name).write_text(text)
    monkeypatch.setattr("shortstack.machine.cache.library_versions", lambda: {"torch": "99"})
    assert not set(before.values()) & set(entries(folder).values())


def test_an_interrupted_walk_leaves_no_file_that_could_be_taken_for_whole(tmp_path):
    def stop(_stage, done, _total, note):
        if done == 2:
            raise KeyboardInterrupt

    freezer = Freezer(Checkpoint.open(tiny("llama")), torch.float32, "cpu", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        freezer.fill(freezer.planned(EXAMPLES, 5))
    assert list((tmp_path / "cache" / "activations").iterdir()) == []


def test_a_diverging_run_stops_with_its_step_and_writes_nothing(source, tmp_path):
    schedule = Schedule(num_train_epochs=4, learning_rate=1e30, warmup_steps=0, max_grad_norm=1e30)
    with pytest.raises(TrainingError, match="a held-out loss of nan"):
        heal(source, tmp_path / "out", replace(SHORT, schedule=schedule))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []  # nor a state


def test_a_broken_record_or_a_limit_that_is_none_is_said_before_training(tmp_path, monkeypatch):
    folder = speaking(tmp_path / "model")
    monkeypatch.setattr("shortstack.healing.healer.HealingRun.examples", lambda _run: pytest.fail("data were read"))
    with monkeypatch.context() as context:
        context.setenv("SHORTSTACK_CACHE_LIMIT", "-5GB")
        with pytest.raises(InputError, match="a size like 50GB, found '-5GB'"):
            heal(Checkpoint.open(folder), tmp_path / "out", "pydoc")
    (folder / "shortstack.json").write_text("{}")
    with pytest.raises(CheckpointError, match="the record shortstack writes"):
        heal(Checkpoint.open(folder), tmp_path / "out", "pydoc")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_dropout_is_on_while_adapters_train_and_off_else():
    pytest.importorskip("peft")
    _, learner = learning(Checkpoint.open(tiny("llama")), Lora(lora_dropout=0.5))
    for training in (True, False):
        learner.train(training)
        assert {each.training for layer in learner.decoder.layers for each in layer.modules()} == {training}


def test_layers_are_computed_twice_where_that_is_asked_for(source, tmp_path, monkeypatch):
    def seen(learner, *_args, **_how):
        assert all(layer.gradient_checkpointing for layer in learner.decoder.layers)
        raise KeyboardInterrupt

    monkeypatch.setattr("shortstack.healing.healer.train", seen)
    with pytest.raises(KeyboardInterrupt):
        heal(source, tmp_path / "out", replace(SHORT, schedule=replace(SHORT.schedule, gradient_checkpointing=True)))


def test_layers_computed_twice_give_the_same_gradients():
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


def test_healed_experts_are_stored_one_by_one_and_load_as_what_was_trained(tmp_path, monkeypatch):
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
