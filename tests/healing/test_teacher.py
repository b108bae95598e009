"""Distillation: its loss and gradient, and what is kept of a teacher, against plain torch on all logits."""

import json
from dataclasses import replace

import architectures
import pytest
import torch
from torch.nn.functional import cross_entropy

from learning import EXAMPLES, learning
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.data import Text, read_examples
from shortstack.decoder import Decoder
from shortstack.decoder.losses import Distillation, DistillationAndText, likeliest
from shortstack.errors import InputError
from shortstack.healing import Full, HealingConfig, Partial, heal
from shortstack.healing.frozen import Freezer
from shortstack.pruning import prune
from zoo import speaking, tiny

pytestmark = pytest.mark.usefixtures("own_cache")
CONFIG = HealingConfig("pydoc", loss="distill", top_k=7, temperature=1.5)


def grouped_divergence(teacher, logits, top, temperature):
    """T^2 KL(p || q), the tokens but the teacher's likeliest taken as one; [tokens, vocabulary] each, in float64."""
    p, q = ((values.double() / temperature).softmax(-1) for values in (teacher, logits))
    chosen = p.topk(top).indices
    rest = torch.ones_like(p).scatter(-1, chosen, 0)
    p_all = torch.cat([p.gather(-1, chosen), (p * rest).sum(-1, keepdim=True)], -1)
    q_all = torch.cat([q.gather(-1, chosen), (q * rest).sum(-1, keepdim=True)], -1)
    return temperature**2 * (p_all * (p_all / q_all).log()).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top", [1, 5, 39])
def test_loss_is_the_divergence_and_its_gradient_autograds(top, temperature):
    draw = torch.Generator().manual_seed(0)
    teacher, logits = (torch.randn(6, 40, generator=draw) * 3 for _ in range(2))
    logits.requires_grad_(True)
    expected = grouped_divergence(teacher, logits, top, temperature)
    (gradient,) = torch.autograd.grad(expected, logits)
    found, slopes = Distillation(*likeliest(teacher, top, temperature), temperature).of(logits.detach())
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(slopes, gradient.float(), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("some", [[0, 2, 3], [], [0, 1, 2, 3, 4, 5]])
def test_next_token_weight_adds_cross_entropy_and_its_gradient(some):
    draw = torch.Generator().manual_seed(0)
    teacher, logits = (torch.randn(6, 40, generator=draw) * 3 for _ in range(2))
    logits.requires_grad_(True)
    said = torch.randint(40, (6,), generator=draw)
    text = cross_entropy(logits.double()[some], said[some], reduction="sum") if some else 0.0
    expected = grouped_divergence(teacher, logits, 5, 1.0) + 0.3 * text
    (gradient,) = torch.autograd.grad(expected, logits)
    targets = torch.full((6,), -100)
    targets[some] = said[some]
    distillation = Distillation(*likeliest(teacher, 5, 1.0), 1.0)
    found, slopes = DistillationAndText(distillation, targets, 0.3).of(logits.detach())
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(slopes, gradient.float(), atol=2e-5, rtol=1e-3)


@torch.no_grad()
def plain_loss(checkpoint, teacher, weight=0.0, examples=EXAMPLES):
    """Mean over the tokens that count, all logits of both by plain transformers, each sample alone."""
    model, whole = checkpoint.model(dtype=torch.float32), teacher.model(dtype=torch.float32)
    total, count = 0.0, 0
    for example in examples:
        ids, learnt = torch.tensor([example.ids]), torch.tensor(example.learn[1:])
        logits, wanted = (one(input_ids=ids).logits[0, :-1][learnt] for one in (model, whole))
        total += float(grouped_divergence(wanted, logits, CONFIG.top_k, CONFIG.temperature))
        if not example.made:
            total += weight * float(cross_entropy(logits, ids[0, 1:][learnt], reduction="sum"))
        count += int(learnt.sum())
    return total / count


@pytest.mark.parametrize("method", [Partial(train_last=2), Partial(train_last=0), Full()], ids=["last", "head", "full"])
def test_loss_of_cached_predictions_equals_that_of_plain_logits(method, tmp_path, monkeypatch):
    teacher = Checkpoint.open(tiny("llama"))
    pruned = prune(teacher, plan(8, layers="2-3,6"), tmp_path / "pruned")
    frozen, learner = learning(pruned, method, CONFIG, teacher)
    batch = frozen.collate(range(3))
    loss = learner(**batch, num_items_in_batch=int((batch["labels"] != -100).sum()))["loss"]
    assert float(loss.detach()) == pytest.approx(plain_loss(pruned, teacher), rel=2e-4)
    monkeypatch.setattr(Decoder, "open", lambda *_, **__: pytest.fail("walked again"))
    learning(pruned, method, CONFIG, teacher)


def test_predictions_are_cached_by_temperature_and_top_k(source):
    def place(**how):
        freezer = Freezer(source, torch.float32, "cpu", HealingConfig("pydoc", loss="distill", **how), source)
        return freezer.planned(EXAMPLES, 2).teacher.path.name

    assert len({place(), place(temperature=2.0), place(top_k=7)}) == 3


def test_teacher_whose_layers_share_keys(tmp_path):
    teacher = Checkpoint.open(architectures.make("gemma4_text", tmp_path / "teacher"))
    pruned = prune(teacher, plan(8, layers="2-3"), tmp_path / "pruned")
    frozen, learner = learning(pruned, Full(), CONFIG, teacher)
    batch = frozen.collate(range(3))
    loss = learner(**batch, num_items_in_batch=int((batch["labels"] != -100).sum()))["loss"]
    assert float(loss.detach()) == pytest.approx(plain_loss(pruned, teacher), rel=2e-4)


def test_wrong_or_missing_teacher_is_refused(tmp_path):
    source, other = (speaking(tmp_path / name) for name in ("source", "other"))
    words = json.loads((other / "tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(InputError) as refused:
        heal(source, tmp_path / "out", CONFIG, base=other)
    assert refused.value.option == "teacher"
    with pytest.raises(InputError) as refused:
        heal(source, tmp_path / "out", CONFIG, base=tiny("llama"))  # of another vocabulary
    assert refused.value.option == "teacher"
    with pytest.raises(InputError) as refused:
        heal(source, tmp_path / "out", CONFIG)
    assert refused.value.option == "base"
    assert not list(tmp_path.glob("out*"))


def test_next_token_loss_counts_text_in_training_alone(tmp_path):
    teacher = Checkpoint.open(tiny("llama"))
    pruned = prune(teacher, plan(8, layers="2-3,6"), tmp_path / "pruned")
    examples = [EXAMPLES[0], replace(EXAMPLES[1], made=True), EXAMPLES[2]]
    config = replace(CONFIG, next_token_weight=0.3)
    frozen, learner = learning(pruned, Partial(train_last=2), config, teacher, examples)
    batch = frozen.collate(range(3))
    count = int((batch["labels"] != -100).sum())
    for mode, weight in ((True, 0.3), (False, 0.0)):
        loss = learner.train(mode)(**batch, num_items_in_batch=count)["loss"]
        assert float(loss.detach()) == pytest.approx(plain_loss(pruned, teacher, weight, examples), rel=2e-4)


def test_distillation_lowers_the_kl_and_raises_top1_agreement(source, tmp_path):
    pruned = prune(source, plan(8, layers="3-4"), tmp_path / "pruned")
    config = HealingConfig("pydoc", max_length=32, max_samples=64, method=Full(), loss="distill", learning_rate=3e-3)
    result = heal(pruned, tmp_path / "healed", config, base=source)
    before, after = result.held_out
    assert after < 0.9 * before
    assert "held-out KL from the teacher" in str(result.table())
    examples = read_examples(Text("pydoc", 64, 32), source.tokenizer())[:3]  # one in twenty is held out
    before, after = (greedy_share(model, source, examples) for model in (pruned, Checkpoint.open(tmp_path / "healed")))
    assert result.top1 == pytest.approx((before, after), abs=0.04)  # where there is bf16 a few tokens tie
    assert result.top1[0] < result.top1[1]


def test_another_teacher_and_own_text_of_the_base_model(source, tmp_path, monkeypatch):
    """The base model writes, and another one teaches."""
    pruned, texts = prune(source, plan(8, layers="3-4"), tmp_path / "pruned"), []
    other = speaking(tmp_path / "other")
    monkeypatch.setattr(
        "shortstack.healing.healer.with_own_text",
        lambda text, base, **_: texts.append(base) or replace(text, source="pydoc"),
    )
    config = HealingConfig("self", max_length=32, max_samples=16, loss="distill", teacher=str(other), max_steps=1)
    heal(pruned, tmp_path / "healed", config, base=source)
    assert texts == [source]
    record = Checkpoint.open(tmp_path / "healed").record["healing"]
    assert record["teacher"] == Checkpoint.open(other).identity
    assert record["base"] == source.identity


@torch.no_grad()
def greedy_share(model, teacher, examples):
    """How many of the teacher's likeliest next tokens are the model's, by plain transformers, each sample alone."""
    both = [checkpoint.model(dtype=torch.float32) for checkpoint in (model, teacher)]
    same = []
    for example in examples:
        found, wanted = (one(input_ids=torch.tensor([example.ids])).logits[0, :-1].argmax(-1) for one in both)
        same += (found == wanted)[torch.tensor(example.learn[1:])].tolist()
    return sum(same) / len(same)
