"""Partial healing against the same step taken by plain autograd on the whole model."""

import copy
import json

import architectures
import pytest
import torch
from transformers import AutoModelForCausalLM

import shortstack.healing.partial as partial
from shortstack.activations import Activations
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError, InputError, OutputError, TrainingError
from shortstack.examples import Example
from shortstack.healing import Partial, Schedule, heal
from shortstack.healing.partial import Tail, collate_samples, padded, prefix_states
from shortstack.planning import plan
from shortstack.pruning import prune
from shortstack.walk import Decoder
from zoo import ZOO, speaking, tiny

pytestmark = pytest.mark.usefixtures("own_cache")
EXAMPLES = [
    Example(tuple(range(3, 15)), (True,) * 12),
    Example(tuple(range(20, 27)), (False,) * 3 + (True,) * 4),
    Example((5, 9, 30, 31), (False, False, False, True)),
]


def whole_model_gradients(checkpoint: Checkpoint, names: set[str]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the named parameters by plain transformers on the padded batch."""
    model, batch = checkpoint.model(dtype=torch.float32), padded(EXAMPLES)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in model.named_parameters() if name in names}


@pytest.mark.parametrize("layers", [(), (6, 7), tuple(range(8)), (3, 4, 6)], ids=["none", "last", "all", "between"])
@pytest.mark.parametrize("model_type", ZOO)
def test_gradients_from_the_cached_prefix_are_those_of_the_whole_model(model_type, layers):
    checkpoint = Checkpoint.open(tiny(model_type))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    states = prefix_states(checkpoint, decoder, EXAMPLES, min(layers, default=8))
    tail = Tail(decoder, layers, train_head=not checkpoint.anatomy.tied)
    loss = tail(**collate_samples([(example, states, index) for index, example in enumerate(EXAMPLES)]))["loss"]
    loss.backward()
    found = {
        f"{name}.{rest}": weight.grad
        for name, module in zip(tail.names, tail.trained, strict=True)
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
        data="pydoc",
        method=Partial(last=2),
        schedule=Schedule(epochs=1, lr=1e-2),
        max_length=32,
        max_samples=64,
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
    named = ",".join(map(str, trained))
    for each, method in enumerate((Partial(near_cut=near), Partial(layers=named))):
        heal(
            checkpoint,
            tmp_path / f"healed-{each}",
            data="pydoc",
            method=method,
            schedule=Schedule(epochs=1, lr=1e-2),
            max_length=32,
            max_samples=32,
        )
        before, after = (
            AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
            for directory in (checkpoint.directory, tmp_path / f"healed-{each}")
        )
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name.split(".")[2] for name in changed if ".layers." in name} == set(map(str, trained))
    healed = Checkpoint.open(tmp_path / "healed-0")
    assert list(Partial(near_cut=near).trained_layers(healed)) == trained, "healed again, it is still where the cut was"


def test_a_tied_head_stays_tied_and_frozen_unless_untied(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", tie_word_embeddings=True))
    schedule = Schedule(epochs=1, lr=1e-2)
    heal(
        source,
        tmp_path / "tied",
        data="pydoc",
        method=Partial(last=1),
        schedule=schedule,
        max_length=32,
        max_samples=32,
    )
    tied = Checkpoint.open(tmp_path / "tied")
    embedding = "model.embed_tokens.weight"
    before = source.model(dtype=torch.float32).state_dict()
    assert tied.anatomy.tied
    assert torch.equal(tied.model(dtype=torch.float32).state_dict()[embedding], before[embedding])

    result = heal(
        source,
        tmp_path / "untied",
        data="pydoc",
        method=Partial(last=1, untie_head=True),
        schedule=schedule,
        max_length=32,
        max_samples=32,
    )
    untied = Checkpoint.open(tmp_path / "untied")
    after = untied.model(dtype=torch.float32).state_dict()
    assert not untied.anatomy.tied
    assert untied.config["tie_word_embeddings"] is False
    assert torch.equal(after[embedding], before[embedding])
    assert not torch.equal(after["lm_head.weight"], before[embedding])
    assert untied.parameters - source.parameters == before[embedding].numel()
    assert result.trainable_parameters > before[embedding].numel()


def test_an_untied_head_of_a_multimodal_model_is_written_where_it_is_read(tmp_path):
    source = Checkpoint.open(
        speaking(tmp_path / "source", "gemma3", text_config={**ZOO["gemma3"]["text_config"], "vocab_size": 384})
    )
    method = Partial(last=1, untie_head=True)
    heal(
        source,
        tmp_path / "out",
        data="pydoc",
        method=method,
        schedule=Schedule(epochs=1, lr=1e-2),
        max_length=32,
        max_samples=8,
    )
    untied = Checkpoint.open(tmp_path / "out")
    assert source.anatomy.tied
    assert not untied.anatomy.tied
    model = untied.model(dtype=torch.float32, strict=True)
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_a_tail_that_shares_with_frozen_layers_is_refused(tmp_path):
    source = Checkpoint.open(architectures.make("gemma3n_text", tmp_path / "source"))
    with pytest.raises(ArchitectureError, match="also share keys and values"):
        Tail(Decoder.load(source, dtype=torch.float32), (6, 7), train_head=False)


def test_impossible_heads_and_depths_are_refused(tmp_path):
    tied = Checkpoint.open(speaking(tmp_path / "tied", tie_word_embeddings=True))
    untied = Checkpoint.open(speaking(tmp_path / "untied", tie_word_embeddings=False))
    cases = [
        (tied, Partial(head=True), "tied"),
        (untied, Partial(untie_head=True), "of its own"),
        (tied, Partial(last=9), "8 layers"),
        (tied, Partial(layers="3,8"), "0 to 7"),
        (tied, Partial(layers="3", near_cut=1), "--layers alone"),
        (tied, Partial(last=2, near_cut=1), "--near-cut alone"),
        (tied, Partial(near_cut=1), "tells of none"),
    ]
    for checkpoint, method, complaint in cases:
        with pytest.raises(InputError, match=complaint):
            heal(checkpoint, tmp_path / "out", data="pydoc", method=method, max_samples=8)
    assert not (tmp_path / "out").exists()


def test_the_prefix_is_walked_once_and_found_again_by_content(tmp_path, monkeypatch):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    walks = []
    original = Decoder.walk

    def counted(self, *args, **kwargs):
        walks.append(kwargs.get("until"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Decoder, "walk", counted)
    arguments = {"data": "pydoc", "schedule": Schedule(epochs=2, lr=1e-3), "max_length": 32, "max_samples": 32}
    heal(source, tmp_path / "a", method=Partial(last=2), **arguments)
    assert walks.count(6) == 2  # two batches of 16, once, whatever the epochs
    walks.clear()
    heal(source, tmp_path / "b", method=Partial(last=2), **arguments)
    assert walks.count(6) == 0
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]
    heal(source, tmp_path / "c", method=Partial(last=1), **arguments)
    assert walks.count(7) == 2


def test_stored_activations_are_the_states_without_padding(tmp_path):
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    states = prefix_states(checkpoint, decoder, EXAMPLES, 5)
    assert isinstance(states, Activations)
    assert states.size == states.path.stat().st_size == 4 * 32 * (12 + 7 + 4)
    for index, example in enumerate(EXAMPLES):
        with torch.no_grad():
            alone = decoder.walk(torch.tensor([example.ids]), until=5)[frozenset()][0]
        torch.testing.assert_close(states[index], alone, atol=1e-6, rtol=1e-5)


def test_an_interrupted_prefix_walk_leaves_no_file_that_could_be_taken_for_whole(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    monkeypatch.setattr(partial, "PREFIX_BATCH", 1)

    def stop(_stage, done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prefix_states(checkpoint, decoder, EXAMPLES, 5, progress=stop)
    assert list((tmp_path / "cache" / "activations").iterdir()) == []


def test_a_diverging_run_stops_with_its_step_and_writes_nothing(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    with pytest.raises(TrainingError, match="finite loss"):
        heal(
            source,
            tmp_path / "out",
            data="pydoc",
            schedule=Schedule(epochs=4, lr=1e30, warmup_steps=0, max_grad_norm=1e30),
            max_length=32,
            max_samples=64,
        )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_an_existing_output_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Checkpoint, "model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(OutputError, match="exists"):
        heal(source, tmp_path / "out", data="pydoc")


def test_one_adamw_step_is_torchs_own(tmp_path):
    """Three micro-batches of one sample each, one optimizer step: the weights are those of torch.optim.AdamW by hand."""
    checkpoint = Checkpoint.open(tiny("llama"))
    schedule = Schedule(
        epochs=1, lr=1e-3, batch_size=3, micro_batch_size=3, warmup_steps=0, decay="constant", max_grad_norm=1e9
    )
    trained, history = Partial(last=1).run(checkpoint, EXAMPLES, EXAMPLES[:1], schedule)
    model, batch = copy.deepcopy(checkpoint.model(dtype=torch.float32)), padded(EXAMPLES)
    names = {
        name for name, _ in model.named_parameters() if name.startswith(("model.layers.7.", "model.norm", "lm_head"))
    }
    weights = [weight.requires_grad_(name in names) for name, weight in model.named_parameters()]
    optimizer = torch.optim.AdamW([weight for weight in weights if weight.requires_grad], lr=1e-3, weight_decay=0.0)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    optimizer.step()
    assert history.steps == 1
    assert set(trained.tensors) == names
    if not partial.fast_bfloat16("cpu"):
        for name in names:
            found = torch.frombuffer(bytearray(trained.tensors[name].data), dtype=torch.float32)
            torch.testing.assert_close(
                found, dict(model.named_parameters())[name].detach().flatten(), atol=1e-6, rtol=1e-4
            )
