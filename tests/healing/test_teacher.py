"""Distillation: its loss and gradient, and what is kept of a teacher, against plain torch on all logits."""

import pytest
import torch

from learning import EXAMPLES, learning
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.cli.console import show_result
from shortstack.data import read_examples
from shortstack.decoder import Decoder
from shortstack.decoder.losses import Distillation, likeliest
from shortstack.errors import CheckpointError, InputError
from shortstack.healing import Full, HealingTask, Objective, Partial, Schedule, TrainingData, heal
from shortstack.healing.frozen import Freezer, OnTheFly
from shortstack.pruning import prune
from zoo import speaking, tiny

pytestmark = pytest.mark.usefixtures("own_cache")


def grouped_divergence(teacher, logits, top, temperature):
    """T^2 KL(p || q), the tokens but the teacher's likeliest taken as one; [tokens, vocabulary] each, in float64."""
    p, q = ((each.double() / temperature).softmax(-1) for each in (teacher, logits))
    chosen = p.topk(top).indices
    rest = torch.ones_like(p).scatter(-1, chosen, 0)
    p_all = torch.cat([p.gather(-1, chosen), (p * rest).sum(-1, keepdim=True)], -1)
    q_all = torch.cat([q.gather(-1, chosen), (q * rest).sum(-1, keepdim=True)], -1)
    return temperature**2 * (p_all * (p_all / q_all).log()).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top", [1, 5, 39])
def test_the_loss_is_the_divergence_and_its_gradient_that_of_autograd(top, temperature):
    draw = torch.Generator().manual_seed(0)
    teacher, logits = (torch.randn(6, 40, generator=draw) * 3 for _ in range(2))
    logits.requires_grad_(True)
    expected = grouped_divergence(teacher, logits, top, temperature)
    (gradient,) = torch.autograd.grad(expected, logits)
    found, slopes = Distillation(*likeliest(teacher, top, temperature), temperature).of(logits.detach())
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(slopes, gradient.float(), atol=2e-5, rtol=1e-3)


def test_of_a_teacher_that_agrees_nothing_is_to_learn():
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    found, slopes = Distillation(*likeliest(logits, 8, 1.0), 1.0).of(logits)
    assert abs(float(found)) < 1e-5
    assert slopes.abs().max() < 1e-5


def plain_loss(checkpoint, teacher, objective):
    """Mean over the tokens that count, all logits of both by plain transformers, each sample alone."""
    model, whole = checkpoint.model(dtype=torch.float32), teacher.model(dtype=torch.float32)
    total, count, distance = 0.0, 0, 0.0
    with torch.no_grad():
        for example in EXAMPLES:
            ids = torch.tensor([example.ids])
            learnt = torch.tensor(example.learn[1:])
            ours, theirs = (each(input_ids=ids, use_cache=False, output_hidden_states=True) for each in (model, whole))
            logits, wanted = (each.logits[0, :-1][learnt] for each in (ours, theirs))
            total += float(grouped_divergence(wanted, logits, objective.top_k, objective.temperature))
            count += int(learnt.sum())
            left, there = (before_norm(each, ids)[0, :-1][learnt].double() for each in (model, whole))
            distance += float(((left - there).square().sum(-1) / there.square().sum(-1)).sum())
    return (total + objective.hidden_weight * distance) / count


def before_norm(model, ids):
    """What enters the final norm."""
    found = []
    hook = model.model.norm.register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    model(input_ids=ids, use_cache=False)
    hook.remove()
    return found[0]


OBJECTIVE = Objective("distill", top_k=7, temperature=1.5, hidden_weight=0.3)


@pytest.mark.parametrize("kind", ["cut", "another", "repaired"])
@pytest.mark.parametrize("method", [Partial(last=2), Partial(last=0), Full()], ids=["last", "head", "full"])
def test_what_is_learnt_of_a_teacher_is_what_plain_logits_say(kind, method, tmp_path):
    teacher = Checkpoint.open(tiny("llama"))
    pruned = prune(teacher, plan(8, layers="2-3,6"), tmp_path / "pruned")
    if kind == "another":
        teacher = Checkpoint.open(speaking_like(tmp_path / "other"))
    if kind == "repaired":  # its weights before the last layers are not the teacher's
        shift(pruned)
        pruned = Checkpoint.open(str(pruned.directory))
    frozen, learner = learning(pruned, method, OBJECTIVE, teacher)
    batch = frozen.collate(range(3))
    loss = learner(**batch, num_items_in_batch=int((batch["labels"] != -100).sum()))["loss"]
    assert float(loss.detach()) == pytest.approx(plain_loss(pruned, teacher, OBJECTIVE), rel=2e-4)


def speaking_like(directory):
    from zoo import make

    return make("llama", directory, seed=5)


def shift(checkpoint):
    """Change a weight of the first layer on disk."""
    from safetensors.torch import load_file, save_file

    path = checkpoint.directory / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    weights["model.layers.0.mlp.down_proj.weight"] += 0.05
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(("method", "walks"), [(Partial(last=2), 1), (Full(), 1)])
def test_teacher_and_frozen_layers_are_walked_once_and_together(method, walks, tmp_path, monkeypatch):
    teacher = Checkpoint.open(tiny("llama"))
    pruned = prune(teacher, plan(8, layers="2-3"), tmp_path / "pruned")
    opened = []
    original = Decoder.open
    monkeypatch.setattr(Decoder, "open", lambda *args, **options: opened.append(args[0]) or original(*args, **options))
    learning(pruned, method, OBJECTIVE, teacher)
    assert opened == [teacher] * walks
    opened.clear()
    learning(pruned, method, OBJECTIVE, teacher)
    assert opened == []


def test_what_is_not_kept_is_computed_alike(tmp_path):
    teacher = Checkpoint.open(tiny("llama"))
    pruned = prune(teacher, plan(8, layers="2-3,6"), tmp_path / "pruned")
    frozen, _ = learning(pruned, Partial(last=2), OBJECTIVE, teacher)
    freezer = Freezer(pruned, torch.float32, "cpu", OBJECTIVE, teacher)
    loaded = [Decoder.load(each, dtype=torch.float32) for each in (pruned, teacher)]
    live = OnTheFly(freezer, EXAMPLES, Partial(last=2).first(pruned), *loaded)
    kept, fresh = (each.collate([2, 0, 1]) for each in (frozen, live))
    assert kept.keys() == fresh.keys()
    for name in ("input_ids", "labels", "teacher_tokens"):
        assert torch.equal(kept[name], fresh[name]), name
    for name in ("teacher_log_p", "teacher_hidden"):
        torch.testing.assert_close(kept[name], fresh[name], atol=1e-5, rtol=1e-5, msg=name)
    for row, example in enumerate((EXAMPLES[2], EXAMPLES[0], EXAMPLES[1])):
        lines = slice(len(example.ids))  # behind it there is padding
        torch.testing.assert_close(kept["hidden"][row][lines], fresh["hidden"][row][lines], atol=1e-5, rtol=1e-5)


def test_learning_from_a_teacher_brings_the_model_closer_to_it(tmp_path, capsys):
    teacher = Checkpoint.open(speaking(tmp_path / "source"))
    pruned = prune(teacher, plan(8, layers="3-4"), tmp_path / "pruned")
    result = heal(
        pruned,
        tmp_path / "healed",
        HealingTask(
            TrainingData("pydoc", max_length=32, max_samples=64),
            Full(),
            objective=Objective("distill"),
            teacher=teacher,
            schedule=Schedule(num_train_epochs=2, learning_rate=3e-3),
        ),
    )
    held_out = dict(result.history.held_out)
    assert held_out[result.history.best] < 0.9 * held_out[0]
    show_result(result)
    said = " ".join(capsys.readouterr().out.split())
    assert "held-out distance from the teacher" in said
    examples = read_examples("pydoc", teacher.tokenizer(), max_length=32, most=64)[:3]  # one in twenty is held out
    before, after = (greedy_share(each, teacher, examples) for each in (pruned, Checkpoint.open(tmp_path / "healed")))
    assert result.greedy_kept == pytest.approx((before, after), abs=0.04)  # where there is bf16 a few tokens tie
    before, after = result.greedy_kept
    assert before < after
    assert f"likeliest token {after:.1%} of the time; before, {before:.1%}." in said
    assert result.to_dict()["greedy_kept"] == result.greedy_kept


def greedy_share(model, teacher, examples):
    """How many of the teacher's likeliest next tokens are the model's, by plain transformers, each sample alone."""
    ours, theirs = (each.model(dtype=torch.float32) for each in (model, teacher))
    same = []
    for example in examples:
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            found, wanted = (each(input_ids=ids).logits[0, :-1].argmax(-1) for each in (ours, theirs))
        same += (found == wanted)[torch.tensor(example.learn[1:])].tolist()
    return sum(same) / len(same)


def test_a_teacher_may_be_named_or_loaded(tmp_path):
    source = speaking(tmp_path / "source")
    pruned = prune(Checkpoint.open(source), plan(8, layers="3-4"), tmp_path / "pruned")
    data, objective = TrainingData("pydoc", max_length=32, max_samples=16), Objective("distill")
    loaded = Checkpoint.open(source).model(dtype=torch.float32)
    given = {"opened": Checkpoint.open(source), "named": str(source), "loaded": loaded}
    opened, named, saved = (
        [
            loss
            for _, loss in heal(
                pruned, tmp_path / name, HealingTask(data, objective=objective, teacher=each)
            ).history.held_out
        ]
        for name, each in given.items()
    )
    assert opened == named
    assert opened == pytest.approx(saved, rel=1e-6)
    assert opened[0] > 0


@pytest.mark.parametrize(
    ("objective", "teacher", "complaint"),
    [
        (Objective("distill"), False, "teacher: expected the unpruned model, .* name that model"),
        (Objective(), True, "leave it out"),
    ],
)
def test_a_teacher_is_there_where_it_is_needed_and_only_there(objective, teacher, complaint, tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    with pytest.raises(InputError, match=complaint):
        heal(source, tmp_path / "out", HealingTask("pydoc", objective=objective, teacher=source if teacher else None))


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path):
    source, other = Checkpoint.open(speaking(tmp_path / "source")), Checkpoint.open(tiny("llama"))
    with pytest.raises(CheckpointError, match="384 tokens"):
        heal(
            source,
            tmp_path / "out",
            HealingTask(TrainingData("pydoc", max_samples=8), objective=Objective("distill"), teacher=other),
        )
