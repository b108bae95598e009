"""Which steps trials share: those that compute the same on the same contents, and no others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from shortstack.study.graph import Graph, foreseen, sources
from shortstack.study.grid import parse_study
from shortstack.study.steps import Contents, Step

HEAL = "heal: {name: quick, data: train.jsonl}\n"
ROLES = ["evaluate_base", "score", "plan", "prune", "evaluate_pruned", "heal", "evaluate_healed"]


def graph(text: str, layers: int | None = 8, **texts: str) -> Graph:
    study = parse_study(text, where="study.yaml")
    models = {trial.model: Contents(f"weights of {trial.model}", "shape", layers) for trial in study.trials}
    return Graph(study, models, {source: texts.get(source.partition(".")[0], source) for source in sources(study)})


def made_up(step: Step) -> Mapping[str, Any]:
    """Results as an oracle has them: bi and ppl score alike, so that they choose the same layers."""
    scores = {"bi": [1.0, 2.0], "ppl": [1.0, 2.0], "taylor": [2.0, 1.0]}
    removed = [0] if step.inputs.get("values") == foreseen_values else [1]
    return {**foreseen(step), "scores": scores, "removed": removed}


def path(found: Graph, number: int = 0, results=foreseen) -> dict[str, Step]:
    """The steps of a trial whose keys are known."""
    return found.steps(found.study.trials[number], results)[0]


def keys(found: Graph, results=foreseen) -> list[set[str]]:
    return [{step.key for step in path(found, number, results).values()} for number in range(len(found.study.trials))]


foreseen_values = path(
    graph("models: [a]\nmetrics: [bi]\n"), results=lambda step: {**foreseen(step), "scores": {"bi": [1.0, 2.0]}}
)["plan"].inputs["values"]


def test_a_trial_goes_through_the_whole_line():
    found = path(graph("models: [a]\nmetrics: [ppl]\n" + HEAL))
    assert list(found) == ROLES
    assert found["heal"].reads == {"checkpoint": found["prune"].key}
    assert found["evaluate_healed"].reads == {"checkpoint": found["heal"].key}
    assert found["evaluate_base"].reads == {"checkpoint": "a"}


@pytest.mark.parametrize("metric", ["bi block", "taylor block", "angular block"])
def test_a_block_is_scored_as_a_window_by_the_metrics_that_can(metric):
    """Of the others a block is scored by its single layers, as plan does it."""
    asked = path(graph(f"models: [a]\nmetrics: [{metric}]\n"))["score"].arguments
    assert asked["window"] == (2 if metric.startswith("angular") else None)


@pytest.mark.parametrize(
    ("lines", "role"),
    [
        ("metrics: [search]\n", "plan"),
        ("metrics: [reverse]\nrepair: true\n", "prune"),
        ("metrics: [ppl]\nstrategy: step 1\n" + HEAL, "heal"),
    ],
)
def test_other_words_to_choose_or_repair_on_make_another_step(lines, role):
    before, after = (path(graph("models: [a]\n" + lines, **words))[role].key for words in ({}, {"mix": "other"}))
    assert before != after


def test_steps_are_known_as_far_as_there_are_results():
    found = graph("models: [a]\nmetrics: [ppl]\n" + HEAL)
    done: dict[str, Any] = {}
    seen = []
    for _ in ROLES:
        steps = path(found, results=lambda step: done.get(step.key))
        seen.append(list(steps))
        new = next(step for step in steps.values() if step.key not in done)
        done[new.key] = foreseen(new)
    assert seen == [ROLES[:2], ROLES[:2], ROLES[:3], ROLES[:4], ROLES[:6], ROLES[:6], ROLES[:7]]


def test_all_metrics_of_one_text_are_one_walk():
    found = graph("models: [a]\nmetrics: [ppl, bi, taylor, magnitude-l1, angular block]\ndrop: [2, 3]\n")
    steps = {step.key: step for number in range(10) for step in path(found, number).values() if step.kind == "score"}
    assert sorted((step.arguments["metrics"], step.arguments["window"]) for step in steps.values()) == [
        (["angular"], 2),
        (["angular"], 3),
        (["bi", "ppl", "taylor"], None),
        (["magnitude-l1"], None),
    ]


def test_metrics_that_choose_the_same_layers_share_everything_behind():
    found = graph("models: [a]\nmetrics: [bi, ppl, taylor]\n" + HEAL)
    bi, ppl, taylor = keys(found, made_up)
    first, second = (path(found, number, made_up) for number in (0, 1))
    assert first["plan"].key != second["plan"].key  # each metric has its own plan
    for role in ("score", "prune", "evaluate_pruned", "heal", "evaluate_healed"):
        assert first[role].key == second[role].key
    assert len(bi | ppl) == len(ROLES) + 1
    assert len(bi & taylor) == 2  # the walk, and the unpruned model


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("seeds: [1]\ncalibration: {seed: 0}\n", ROLES[:5]),
        ("seeds: [1]\n", ["evaluate_base", "prune", "evaluate_pruned"]),  # other scores, that choose the same
        ("calibration: {samples: 9}\n", ["evaluate_base", *ROLES[3:]]),
        ("drop: 50%\n", ["evaluate_base", "score"]),
        ("heal: {name: other, data: train.jsonl, learning_rate: 1.0}\n", ROLES[:5]),
        ("heal: {name: other, data: train.jsonl}\n", ROLES),  # a name is no content
        ("heal: {name: other, data: train.jsonl, max_grad_norm: 1.0}\n", ROLES),  # nor is a default that is spelled out
        ("repair: true\n", ["evaluate_base", "score", "plan"]),
        ("evaluation: {seq_length: 64}\n", ["score", "plan", "prune", "heal"]),
        ("compute: {dtype: float32}\n", ["plan", "prune", "heal"]),  # cutting copies bytes, healing has its own arithmetic
        ("compute: {device: cuda}\n", ROLES),
        ("resources: {heal: {gpus: 1}}\n", ROLES),
    ],
)  # fmt: skip
def test_a_step_is_the_same_when_what_it_computes_is(change, kept):
    """Results name no step here, as contents name none: what follows from equal contents is equal."""

    def same(step):
        removed = [0] if step.kind == "plan" and step.arguments["drop"] == "25%" else [1]
        scores = {"ppl": [step.arguments.get("samples"), step.arguments.get("seed")]}
        contents = Contents(str([step.kind, step.arguments, step.inputs]), "")
        return {"scores": scores, "blocks": {}, "removed": removed, **contents.result}

    text = "models: [a]\nmetrics: [ppl]\n"
    heal = "" if change.startswith("heal") else HEAL
    before, after = path(graph(text + HEAL), results=same), path(graph(text + heal + change), results=same)
    assert [role for role in ROLES if before[role].key == after[role].key] == kept


def test_other_words_under_the_same_name_make_another_step():
    text = "models: [a]\nmetrics: [ppl]\n" + HEAL
    before, after = path(graph(text)), path(graph(text, train="other words"))
    assert before["prune"].key == after["prune"].key
    assert before["heal"].key != after["heal"].key


def test_other_weights_under_the_same_name_make_other_steps():
    found = graph("models: [a]\nmetrics: [ppl]\n")
    for contents in (Contents("other", "shape", 8), replace(found.models["a"], beside="another tokenizer")):
        assert not keys(found)[0] & keys(Graph(found.study, {"a": contents}, found.texts))[0]


def test_other_versions_of_libraries_make_other_steps(monkeypatch):
    found = graph("models: [a]\nmetrics: [ppl]\n")
    before = keys(found)[0]
    monkeypatch.setattr("shortstack.machine.cache.library_versions", lambda: {"torch": "99"})
    assert not before & keys(Graph(found.study, found.models, found.texts))[0]


def test_in_turns_one_step_prunes_and_heals():
    found = path(graph("models: [a]\nmetrics: [ppl]\nstrategy: step 1\n" + HEAL))
    assert list(found) == ["evaluate_base", "heal", "evaluate_healed"]
    assert found["heal"].kind == "turns"
    assert found["heal"].arguments["turns"]["step"] == 1
    alone = path(graph("models: [a]\nmetrics: [ppl]\nstrategy: step 1\n"))
    assert list(alone) == ["evaluate_base", "plan", "prune", "evaluate_pruned"]


def test_a_teacher_is_the_unpruned_model():
    found = path(graph("models: [a]\nmetrics: [reverse]\nheal: {data: train.jsonl, loss: distill}\n"))
    assert found["heal"].reads["teacher"] == "a"
    assert found["heal"].inputs["teacher"]["weights"] == "weights of a"
    assert "teacher" not in path(graph("models: [a]\nmetrics: [reverse]\n" + HEAL))["heal"].reads


def test_cuts_of_one_shape_share_a_profile():
    found = graph("models: [a]\nmetrics: [layers 1, layers 2]\nevaluation: {profile: true}\n")
    same = lambda step: {**foreseen(step), "shape_sha256": "seven layers"}  # noqa: E731
    first, second = (path(found, number, same) for number in (0, 1))
    assert first["prune"].key != second["prune"].key
    assert first["profile"].key == second["profile"].key != first["profile_base"].key
