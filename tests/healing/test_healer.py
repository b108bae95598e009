"""Partial healing against the same step taken by plain autograd on the whole model."""

import copy
import json
from dataclasses import replace

import architectures
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learning import EXAMPLES, learning
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.errors import ArchitectureError, CheckpointError, InputError, OutputError, TrainingError
from shortstack.healing import Full, HealingTask, Partial, Schedule, TrainingData, heal
from shortstack.healing.activations import Activations
from shortstack.healing.batches import Data
from shortstack.healing.frozen import Freezer
from shortstack.healing.learner import padded
from shortstack.healing.training import Environment, train
from shortstack.pruning import prune
from zoo import ZOO, speaking, tiny

pytestmark = pytest.mark.usefixtures("own_cache")


def mask(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    lengths = torch.tensor([len(example.ids) for example in EXAMPLES])
    return (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()


def whole_model_gradients(checkpoint: Checkpoint, names: set[str]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the named parameters by plain transformers on the padded batch."""
    model, batch = checkpoint.model(dtype=torch.float32), padded(EXAMPLES)
    logits = model(input_ids=batch["input_ids"], attention_mask=mask(batch), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in model.named_parameters() if name in names}


@pytest.mark.parametrize("layers", [(), (6, 7), tuple(range(8)), (3, 4, 6)], ids=["none", "last", "all", "between"])
@pytest.mark.parametrize("model_type", ZOO)
def test_gradients_from_the_cached_prefix_are_those_of_the_whole_model(model_type, layers):
    checkpoint = Checkpoint.open(tiny(model_type))
    method = Partial(layers=",".join(map(str, layers))) if layers else Partial(last=0)
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


def test_what_healing_changes_is_the_tail_and_nothing_else(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", tie_word_embeddings=False))
    result = heal(
        source,
        tmp_path / "healed",
        HealingTask(
            TrainingData("pydoc", max_length=32, max_samples=64),
            Partial(last=2),
            schedule=Schedule(num_train_epochs=1, learning_rate=1e-2),
        ),
    )
    before, after = (
        source.model(dtype=torch.float32).state_dict(),
        AutoModelForCausalLM.from_pretrained(tmp_path / "healed", dtype=torch.float32).state_dict(),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {
        name for name in before if name.startswith(("model.layers.6.", "model.layers.7.", "model.norm", "lm_head"))
    }
    assert changed == expected
    assert result.trainable_parameters == sum(before[name].numel() for name in expected)
    assert set(result.trained_layers) == {int(name.split(".")[2]) for name in expected if ".layers." in name}
    held_out = [loss for _, loss in result.history.held_out]
    assert held_out[-1] < held_out[0]
    record = json.loads((tmp_path / "healed" / "shortstack.json").read_text())
    assert record["verb"] == "heal"
    assert record["healing"]["method"] == {
        "name": "partial",
        "last": 2,
        "layers": None,
        "near_cut": None,
        "head": None,
        "untie_head": False,
    }


@pytest.mark.parametrize(
    ("cuts", "near", "trained"),
    [
        (["6-7"], 2, [4, 5]),  # a tail
        (["0-1"], 1, [0]),
        (["2-3,6"], 1, [1, 2, 3, 4]),
        (["2-3"], 3, [0, 1, 2, 3, 4]),
        (["3", "4"], 1, [2, 3, 4]),  # twice: 3 and then 5 of the first model; 4 is between
    ],
)
def test_layers_near_the_cuts_train_and_no_others(cuts, near, trained, tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "source"))
    for number, cut in enumerate(cuts):
        chosen = plan(checkpoint.anatomy.layers, layers=cut)
        checkpoint = prune(checkpoint, chosen, tmp_path / str(number))
    assert list(Partial(near_cut=near).trained_layers(checkpoint)) == trained
    assert list(Partial(layers=",".join(map(str, trained))).trained_layers(checkpoint)) == trained
    task = HealingTask(
        TrainingData("pydoc", max_length=32, max_samples=32), schedule=Schedule(num_train_epochs=1, learning_rate=1e-2)
    )
    heal(checkpoint, tmp_path / "healed", replace(task, method=Partial(near_cut=near)))
    healed = Checkpoint.open(tmp_path / "healed")
    before, after = (each.model(dtype=torch.float32).state_dict() for each in (checkpoint, healed))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[2] for name in changed if ".layers." in name} == set(map(str, trained))
    assert list(Partial(near_cut=near).trained_layers(healed)) == trained, "healed again, it is still where the cut was"


def test_a_tied_head_stays_tied_and_frozen_unless_untied(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", tie_word_embeddings=True))
    schedule = Schedule(num_train_epochs=1, learning_rate=1e-2)
    heal(
        source,
        tmp_path / "tied",
        HealingTask(TrainingData("pydoc", max_length=32, max_samples=32), Partial(last=1), schedule=schedule),
    )
    tied = Checkpoint.open(tmp_path / "tied")
    embedding = "model.embed_tokens.weight"
    before = source.model(dtype=torch.float32).state_dict()
    assert tied.anatomy.tied
    assert torch.equal(tied.model(dtype=torch.float32).state_dict()[embedding], before[embedding])

    result = heal(
        source,
        tmp_path / "untied",
        HealingTask(
            TrainingData("pydoc", max_length=32, max_samples=32), Partial(last=1, untie_head=True), schedule=schedule
        ),
    )
    untied = Checkpoint.open(tmp_path / "untied")
    after = untied.model(dtype=torch.float32).state_dict()
    assert not untied.anatomy.tied
    assert untied.config["tie_word_embeddings"] is False
    assert torch.equal(after[embedding], before[embedding])
    assert not torch.equal(after["lm_head.weight"], before[embedding])
    assert untied.parameters - source.parameters == before[embedding].numel()
    assert result.trainable_parameters > before[embedding].numel()


def test_an_untied_head_that_is_not_to_train_is_refused():
    """The config would say untied with no head beside it, and transformers would draw one at random."""
    with pytest.raises(InputError, match=r"untie_head: expected a head that trains.*found head turned off"):
        Partial(untie_head=True, head=False)


def test_an_untied_head_of_a_multimodal_model_is_written_where_it_is_read(tmp_path):
    source = Checkpoint.open(
        speaking(tmp_path / "source", "gemma3", text_config={**ZOO["gemma3"]["text_config"], "vocab_size": 384})
    )
    method = Partial(last=1, untie_head=True)
    heal(
        source,
        tmp_path / "out",
        HealingTask(
            TrainingData("pydoc", max_length=32, max_samples=8),
            method,
            schedule=Schedule(num_train_epochs=1, learning_rate=1e-2),
        ),
    )
    untied = Checkpoint.open(tmp_path / "out")
    assert source.anatomy.tied
    assert not untied.anatomy.tied
    model = untied.model(dtype=torch.float32, strict=True)
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_a_tail_that_shares_with_frozen_layers_is_refused(tmp_path):
    source = Checkpoint.open(architectures.make("gemma3n_text", tmp_path / "source"))
    with pytest.raises(ArchitectureError, match="also share keys and values"):
        learning(source, Partial(last=2))


def test_impossible_heads_and_depths_are_refused(tmp_path):
    tied = Checkpoint.open(speaking(tmp_path / "tied", tie_word_embeddings=True))
    untied = Checkpoint.open(speaking(tmp_path / "untied", tie_word_embeddings=False))
    cases = [
        (tied, Partial(head=True), "tied"),
        (untied, Partial(untie_head=True), "of its own"),
        (tied, Partial(last=9), "8 layers"),
        (tied, Partial(layers="3,8"), "0 to 7"),
        (tied, Partial(near_cut=30), "between 1 and the model's"),
        (tied, Partial(near_cut=1), "tells of none"),
    ]
    for checkpoint, method, complaint in cases:
        with pytest.raises(InputError, match=complaint):
            heal(checkpoint, tmp_path / "out", HealingTask(TrainingData("pydoc", max_samples=8), method))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ways", "complaint"),
    [
        ({"layers": "3", "near_cut": 1}, "layers alone"),
        ({"last": 2, "near_cut": 1}, "near_cut alone"),
        ({"last": -1}, "at least 0"),
    ],
)
def test_layers_are_named_in_one_way(ways, complaint):
    with pytest.raises(InputError, match=complaint):
        Partial(**ways)


def test_the_prefix_is_walked_once_and_found_again_by_content(tmp_path, monkeypatch):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    walked = []
    original = Decoder.through

    def counted(self, walks, layers, **options):
        walked.append(list(layers))
        return original(self, walks, layers, **options)

    monkeypatch.setattr(Decoder, "through", counted)
    data, schedule = (
        TrainingData("pydoc", max_length=32, max_samples=32),
        Schedule(num_train_epochs=2, learning_rate=1e-3),
    )
    two = HealingTask(data, Partial(last=2), schedule=schedule)
    heal(source, tmp_path / "a", two)
    assert walked == [list(range(6))], "once, whatever the epochs"
    walked.clear()
    heal(source, tmp_path / "b", two)
    assert walked == []
    heal(source, tmp_path / "fresh", two, cache=False)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "b", "fresh")]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
        torch.testing.assert_close(weight, weights[2][name], atol=1e-3, rtol=1e-2, msg=name)
    heal(source, tmp_path / "c", replace(two, method=Partial(last=1)))
    assert walked[-1] == list(range(7))


def test_stored_activations_are_the_states_without_padding():
    checkpoint = Checkpoint.open(tiny("llama"))
    frozen, _ = learning(checkpoint, Partial(last=3))
    states, decoder = frozen.states, Decoder.load(checkpoint, dtype=torch.float32)
    assert isinstance(states, Activations)
    assert states.size == states.path.stat().st_size == 4 * 32 * (12 + 7 + 4)
    for index, example in enumerate(EXAMPLES):
        with torch.no_grad():
            alone = decoder.walk(torch.tensor([example.ids]), until=5)[frozenset()][0]
        torch.testing.assert_close(states[index], alone, atol=1e-6, rtol=1e-5)


def test_an_interrupted_walk_leaves_no_file_that_could_be_taken_for_whole(tmp_path):
    checkpoint = Checkpoint.open(tiny("llama"))

    def stop(_stage, done, _total, note):
        if done == 2:
            raise KeyboardInterrupt

    freezer = Freezer(checkpoint, torch.float32, "cpu", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        freezer.fill(freezer.planned(EXAMPLES, 5))
    assert list((tmp_path / "cache" / "activations").iterdir()) == []


def test_a_diverging_run_stops_with_its_step_and_writes_nothing(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    with pytest.raises(TrainingError, match="a held-out loss of nan"):
        heal(
            source,
            tmp_path / "out",
            HealingTask(
                TrainingData("pydoc", max_length=32, max_samples=64),
                schedule=Schedule(num_train_epochs=4, learning_rate=1e30, warmup_steps=0, max_grad_norm=1e30),
            ),
        )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []  # nor a state


def test_an_existing_output_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Checkpoint, "model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(OutputError, match="exists"):
        heal(source, tmp_path / "out", "pydoc")


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


def test_one_adamw_step_is_torchs_own(tmp_path):
    """Three micro-batches of one sample each, one optimizer step: the weights are those of torch.optim.AdamW by hand."""
    checkpoint = Checkpoint.open(tiny("llama"))
    schedule = Schedule(
        num_train_epochs=1,
        learning_rate=1e-3,
        per_device_train_batch_size=3,
        warmup_steps=0,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
    )
    frozen, learner = learning(checkpoint, Partial(last=1))
    data = Data(range(3), range(1), frozen.lengths, frozen.collate)
    history = train(learner, data, schedule, tmp_path, environment=Environment())
    model, batch = copy.deepcopy(checkpoint.model(dtype=torch.float32)), padded(EXAMPLES)
    names = {
        name for name, _ in model.named_parameters() if name.startswith(("model.layers.7.", "model.norm", "lm_head"))
    }
    weights = [weight.requires_grad_(name in names) for name, weight in model.named_parameters()]
    optimizer = torch.optim.AdamW([weight for weight in weights if weight.requires_grad], lr=1e-3, weight_decay=0.0)
    logits = model(input_ids=batch["input_ids"], attention_mask=mask(batch), use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    optimizer.step()
    assert history.steps == 1
    found, expected = learner.trained_tensors(), dict(model.named_parameters())
    assert found.keys() == names
    for name in names:
        torch.testing.assert_close(found[name], expected[name].detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", [Partial(last=3), Full()], ids=["last", "full"])
def test_layers_computed_twice_give_the_same_gradients(method):
    found, passes = [], []
    for twice in (False, True):
        frozen, learner = learning(Checkpoint.open(tiny("llama")), method)
        if twice:
            learner.decoder.model.gradient_checkpointing_enable({"use_reentrant": False})
        count = [0]
        learner.decoder.layers[6].mlp.register_forward_pre_hook(
            lambda *_, count=count: count.__setitem__(0, count[0] + 1)
        )
        learner.train()(**frozen.collate(range(3)))["loss"].backward()
        found.append([weight.grad for weight in learner.parameters()])
        passes.append(count[0])
    assert passes[1] == passes[0] + 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
