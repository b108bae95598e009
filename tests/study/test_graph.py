"""Which steps trials share: those that compute the same on the same contents, and no others."""

from dataclasses import replace

import pytest

from shortstack.study import read_study
from shortstack.study.graph import Graph, foreseen, sources
from shortstack.study.trial import Model

ROLES = ["evaluate_base", "score", "plan", "prune", "evaluate_pruned", "heal", "evaluate_healed"]
ONE, HEAL = "model: a\ndrop: 25%\nmetric: ppl\n", "heal: {name: quick, data: train.jsonl}\n"


@pytest.fixture
def graph(tmp_path):
    def of(text, **digests):
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        study = read_study(tmp_path / "study.yaml")
        models = {name: Model({"weights": name, "config": "eight layers"}, 8) for name in study.models}
        return Graph(study, models, {name: digests.get(name.partition(".")[0], name) for name in sources(study)})

    return of


def path(graph, number=0, result=foreseen):
    """The steps of a trial with these results."""
    trial, results = graph.study.trials[number], {}
    while True:
        known, every = graph.steps(trial, results.get)
        if len(known) == len(every) == len(results):
            return known
        results |= {step.key: {**foreseen(step), **result(step)} for step in known.values()}


def same(one, other):
    return [role for role in ROLES if one[role].key == other[role].key]


def test_a_trial_takes_every_step_of_the_line(graph):
    found = path(graph(ONE + HEAL))
    assert list(found) == ROLES
    assert found["heal"].places == {"model": found["prune"].key}
    assert found["evaluate_healed"].places == {"model": found["heal"].key}


def test_all_metrics_of_a_text_are_one_walk(graph):
    text = "model: a\nmetric: [ppl, bi, taylor, magnitude-l1]\ndrop: [2, 3]\n"
    found = graph(text + "trials:\n- {metric: angular, strategy: block, drop: [2, 3]}\n")
    scores = {step.key: step for trial in found.study.trials if (step := found.steps(trial, {}.get)[0].get("score"))}
    assert sorted((step.arguments["metrics"], step.arguments["window"]) for step in scores.values()) == [
        (["angular"], 2),
        (["angular"], 3),
        (["bi", "ppl", "taylor"], None),
        (["magnitude-l1"], None),
    ]


def test_metrics_that_select_the_same_layers_share_the_steps_behind(graph):
    def result(step):
        return {"removed": [1 + (step.arguments["selection"].metric == "taylor")]} if step.kind == "plan" else {}

    found = graph(ONE.replace("ppl", "[bi, ppl, taylor]") + HEAL)
    bi, ppl, taylor = (path(found, number, result) for number in range(3))
    assert same(bi, ppl) == [role for role in ROLES if role != "plan"]
    assert same(bi, taylor) == ["evaluate_base", "score"]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("seed: 1\n", ["evaluate_base", "prune", "evaluate_pruned"]),  # other scores, that select the same
        ("calibration: {samples: 9}\n", ["evaluate_base", *ROLES[3:]]),
        ("drop: 50%\n", ["evaluate_base", "score"]),
        ("heal: {name: other, data: train.jsonl, learning_rate: 1.0}\n", ROLES[:5]),
        (
            "heal: {name: other, data: train.jsonl, max_grad_norm: 1.0}\n",
            ROLES,
        ),  # neither names nor spelt defaults count
        ("repair: true\n", ["evaluate_base", "score", "plan"]),
        ("evaluation: {seq_length: 64}\n", ["score", "plan", "prune", "heal"]),
        ("dtype: float32\n", ["plan", "prune", "heal"]),  # pruning copies bytes, healing has its own arithmetic
        ("device: cpu\nresources: {heal: {gpus: 1}}\n", ROLES),
    ],
)
def test_a_step_is_the_same_if_it_computes_the_same(graph, change, kept):
    def result(step):
        if step.kind == "plan":
            return {"removed": [step.arguments["selection"].drop]}
        scores = {"ppl": [str(step.arguments.get("text")), step.arguments.get("seed")]}
        identity = {"weights": str([step.kind, step.arguments, step.inputs]), "config": ""}
        return {"identity": identity, "scores": scores, "blocks": {}}

    before, name = ONE + HEAL, change.partition(":")[0]
    after = "".join(line for line in before.splitlines(keepends=True) if not line.startswith(name)) + change
    assert same(path(graph(before), 0, result), path(graph(after), 0, result)) == kept


@pytest.mark.parametrize(
    ("lines", "role"),
    [
        ("strategy: search\n", "plan"),
        ("metric: reverse\nrepair: true\n", "prune"),
        ("metric: ppl\nheal: {data: train.jsonl, layers_per_round: 1}\n", "heal"),
        ("metric: reverse\nheal: {data: mix}\n", "heal"),
    ],
)
def test_another_text_makes_another_step(graph, lines, role):
    digests = {"pydoc": "other", "train": "other"}
    before, after = (path(graph("model: a\ndrop: 2\n" + lines, **each))[role].key for each in ({}, digests))
    assert before != after


def test_other_models_and_versions_make_other_steps(graph, monkeypatch):
    found = graph(ONE + HEAL)
    before = path(found)
    assert same(before, path(replace(found, models={"a": Model({"weights": "b", "config": ""}, 8)}))) == []
    monkeypatch.setattr("shortstack.machine.cache.library_versions", lambda: {"torch": "99"})
    assert same(before, path(graph(ONE + HEAL))) == []


def test_in_rounds_one_step_prunes_and_heals(graph):
    found = path(graph(ONE + "heal: {data: train.jsonl, layers_per_round: 1, loss: distill}\n"))
    assert list(found) == ["evaluate_base", "heal", "evaluate_healed"]
    assert (found["heal"].kind, found["heal"].arguments["rounds"]["step"]) == ("rounds", 1)
    assert (found["heal"].places["base"], found["heal"].inputs["base"]["weights"]) == ("a", "a"), "the teacher"


def test_models_of_one_shape_share_a_profile(graph):
    found = graph("model: a\nlayers: ['1', '2']\nprofile: true\n")
    first, second = (
        path(found, number, lambda step: {"identity": {"weights": step.key, "config": 7}}) for number in (0, 1)
    )
    assert first["prune"].key != second["prune"].key
    assert first["profile"].key == second["profile"].key != first["profile_base"].key
