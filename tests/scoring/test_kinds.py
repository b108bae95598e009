"""Losses of several kinds of text, put together."""

import math

import pytest
import torch

import naive
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.data.tokens import Kind
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED
from shortstack.planning import select_layers
from shortstack.scoring import METRICS, Scores, score
from shortstack.scoring.measurement import Measurement, MeasurementSpec
from zoo import tiny

IDS = torch.randint(3, 90, (11, 10), generator=torch.Generator().manual_seed(4))
COUNTED = torch.rand((11, 10), generator=torch.Generator().manual_seed(5)) < 0.6
COUNTED[:7] = True
KINDS = (Kind("prose", 4, 1.0), Kind("chat", 3, 2.0), Kind("copying", 4, 0.3))
ROWS = (slice(0, 4), slice(4, 7), slice(7, 11))
MIXED = Tokens(IDS, "mixed", False, 0, KINDS, COUNTED)
WALKED = [name for name, metric in METRICS.items() if metric.needs_text]


def mean(values):
    return sum(kind.weight * value for kind, value in zip(KINDS, values, strict=True)) / 3.3


@torch.no_grad()
def losses(directory, removed, rows):
    """Of the tokens that count, one by one."""
    logits = naive.logits_without(directory, IDS, removed)[rows, :-1]
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[rows, 1:].flatten(), reduction="none")
    return float(each[COUNTED[rows, 1:].flatten()].mean())


@torch.no_grad()
def divergence(directory, removed, rows):
    whole, other = (naive.logits_without(directory, IDS, out)[rows, :-1].double() for out in ([], removed))
    each = (whole.softmax(-1) * (whole.log_softmax(-1) - other.log_softmax(-1))).sum(-1)
    return float(each[COUNTED[rows, 1:]].mean())


def similarities(directory, layer, kind, rows):
    """The cosines of the states around a layer, [samples, length], and which of them predict a token that counts."""
    states = naive.hidden_states(directory, IDS)
    cosines = torch.nn.functional.cosine_similarity(states[layer][rows], states[layer + 1][rows], dim=-1)
    whole = kind.source != "copying"
    predicting = torch.nn.functional.pad(COUNTED[rows, 1:], (0, 1))
    return cosines, torch.ones_like(predicting) if whole else predicting


def influence(directory, layer, kind, rows):
    cosines, predicting = similarities(directory, layer, kind, rows)
    return float((1 - cosines[predicting]).mean())


def angle(directory, layer, kind, rows):
    """Of the last token."""
    cosines, _ = similarities(directory, layer, kind, rows)
    return float((torch.arccos(cosines[:, -1]) / math.pi).mean())


def test_together_they_count_by_their_weights_and_by_what_is_lost():
    checkpoint = Checkpoint.open(tiny("llama"))
    scores = score(checkpoint, MIXED, metrics=["ppl", "kl", "bi", "angular"], window=2)
    directory = checkpoint.directory
    for layer in range(8):
        lost = [losses(directory, [layer], rows) - losses(directory, [], rows) for rows in ROWS]
        assert math.log(scores.scores["ppl"][layer]) == pytest.approx(mean(lost), rel=1e-4, abs=1e-5)
        kls = [divergence(directory, [layer], rows) for rows in ROWS]
        assert scores.scores["kl"][layer] == pytest.approx(mean(kls), rel=1e-4, abs=1e-6)
        for name, measure in (("bi", influence), ("angular", angle)):
            each = [measure(directory, layer, kind, rows) for kind, rows in zip(KINDS, ROWS, strict=True)]
            assert scores.scores[name][layer] == pytest.approx(mean(each), rel=1e-4, abs=1e-5)
    for first in range(7):
        lost = [losses(directory, [first, first + 1], rows) - losses(directory, [], rows) for rows in ROWS]
        assert math.log(scores.blocks["ppl"][first]) == pytest.approx(mean(lost), rel=1e-4, abs=1e-5)
    assert scores.base_loss == pytest.approx(mean([losses(directory, [], rows) for rows in ROWS]), rel=1e-5)
    assert scores.kinds == ("prose", "chat", "copying")
    assert Scores.from_dict(scores.to_dict(), where="file") == scores


def test_gradients_are_of_the_mean_by_weight():
    """taylor against autograd of the same sum."""
    checkpoint = Checkpoint.open(tiny("llama"))
    model = naive.load(checkpoint.directory)
    logits = model(input_ids=IDS, use_cache=False).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), reduction="none").view(11, 9)
    mean([each[rows][COUNTED[rows, 1:]].mean() for rows in ROWS]).backward()
    expected = [
        sum(float((weight * weight.grad).abs().sum()) for weight in layer.parameters() if weight.dim() > 1)
        for layer in naive.stack(model)[1]
    ]
    assert score(checkpoint, MIXED, metrics=["taylor"]).scores["taylor"] == pytest.approx(expected, rel=1e-4)


def test_of_one_kind_all_is_as_without_kinds():
    checkpoint = Checkpoint.open(tiny("llama"))
    plain = score(checkpoint, Tokens.given(IDS), metrics=WALKED)
    alone = score(checkpoint, Tokens(IDS, "a", False, 0, (Kind("a", 11, 7.0),)), metrics=WALKED)
    assert set(alone.scores) == set(plain.scores)
    for name, values in alone.scores.items():
        assert values == pytest.approx(plain.scores[name], rel=1e-9), name
    assert alone.kinds == ("a",)
    assert plain.kinds == ()


def test_loss_and_divergence_of_a_set_are_the_means_of_its_kinds():
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    gone = frozenset({2, 5})
    run = Measurement(decoder, MIXED, MeasurementSpec([METRICS["kl"]], singles=False, sets=[gone])).go()
    for found, measure, skipped in (
        (run.loss(gone), losses, [2, 5]),
        (run.loss(UNPRUNED), losses, []),
        (run.distance(gone), divergence, [2, 5]),
    ):
        assert found == pytest.approx(mean([measure(checkpoint.directory, skipped, rows) for rows in ROWS]), rel=1e-4)


def test_layers_go_one_after_the_other_by_the_mean_of_kinds():
    checkpoint, removed = Checkpoint.open(tiny("llama")), []
    chosen = select_layers(checkpoint, MIXED, metric="kl", drop=3, step=2).removed
    while len(removed) < 3:
        rest = [layer for layer in range(8) if layer not in removed]
        value = {
            layer: mean([divergence(checkpoint.directory, [*removed, layer], rows) for rows in ROWS]) for layer in rest
        }
        removed += sorted(rest, key=value.__getitem__)[: min(2, 3 - len(removed))]
    assert list(chosen) == sorted(removed)
