"""Which steps trials share: those that compute the same on the same contents, and no others."""

from dataclasses import replace

import pytest

from shortstack.study import read_study
from shortstack.study.graph import Graph, Model, foreseen, sources

ROLES = ["evaluate_base", "score", "plan", "prune", "evaluate_pruned", "heal", "evaluate_healed"]
HEAL = "heal: {name: quick, data: train.jsonl}\n"
ONE = "model: a\ndrop: 25%\nmetric: ppl\n"


@pytest.fixture
def graph(tmp_path):
    def of(text, **digests):
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        study = read_study(tmp_path / "study.yaml")
        models = {name: Model({"weights": name, "config": "eight layers"}, 8) for name in study.models}
        return Graph(study, models, {name: digests.get(name.partition(".")[0], name) for name in sources(study)})

    return of


def results_of(graph, change=lambda _step: {}):
    """Results of every step as it is foreseen, but for some changes."""
    steps = {}

    def find(key):
        for trial in graph.study.trials:
            steps.update({step.key: step for step in graph.steps(trial, lambda key: known.get(key))[1].values()})
        known[key] = {**foreseen(steps[key]), **change(steps[key])}
        return known[key]

    known = {}
    return find


def path(graph, number=0, change=lambda _step: {}):
    return graph.steps(graph.study.trials[number], results_of(graph, change))[0]


def test_a_trial_takes_every_step_of_the_line(graph):
    found = path(graph(ONE + HEAL))
    assert list(found) == ROLES
    assert found["heal"].places == {"model": found["prune"].key}
    assert found["evaluate_healed"].places == {"model": found["heal"].key}


def test_steps_are_known_as_far_as_results_are(graph):
    found, done, seen = graph(ONE + HEAL), {}, []
    for _ in ROLES:
        known, every = found.steps(found.study.trials[0], done.get)
        seen.append(len(known))
        assert list(every) == ROLES
        new = next(step for step in known.values() if step.key not in done)
        done[new.key] = foreseen(new)
    assert seen == [2, 2, 3, 4, 6, 6, 7]


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
    found = graph(ONE.replace("ppl", "[bi, ppl, taylor]") + HEAL)

    def removed(step):
        return {"removed": [1 + (step.arguments["selection"].metric == "taylor")]} if step.kind == "plan" else {}

    bi, ppl, taylor = (path(found, number, removed) for number in range(3))
    assert [role for role in ROLES if bi[role].key == ppl[role].key] == [role for role in ROLES if role != "plan"]
    assert [role for role in ROLES if bi[role].key == taylor[role].key] == ["evaluate_base", "score"]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("seed: 1\n", ["evaluate_base", "prune", "evaluate_pruned"]),  # other scores, that select the same
        ("calibration: {samples: 9}\n", ["evaluate_base", *ROLES[3:]]),
        ("drop: 50%\n", ["evaluate_base", "score"]),
        ("heal: {name: other, data: train.jsonl, learning_rate: 1.0}\n", ROLES[:5]),
        ("heal: {name: other, data: train.jsonl}\n", ROLES),  # a name is no content
        ("heal: {data: train.jsonl, max_grad_norm: 1.0}\n", ROLES),  # nor is a default that is spelled out
        ("repair: true\n", ["evaluate_base", "score", "plan"]),
        ("evaluation: {seq_length: 64}\n", ["score", "plan", "prune", "heal"]),
        ("dtype: float32\n", ["plan", "prune", "heal"]),  # pruning copies bytes, healing has its own arithmetic
        ("device: cpu\nresources: {heal: {gpus: 1}}\n", ROLES),
    ],
)
def test_a_step_is_the_same_if_it_computes_the_same(graph, change, kept):
    def contents(step):
        identity = {"identity": {"weights": str([step.kind, step.arguments, step.inputs]), "config": ""}}
        if step.kind == "plan":
            return {"removed": [step.arguments["selection"].drop]}
        return {
            **identity,
            "scores": {"ppl": [str(step.arguments.get("text")), step.arguments.get("seed")]},
            "blocks": {},
        }

    text = ONE + HEAL
    name = change.partition(":")[0]
    changed = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(name)) + change
    before, after = path(graph(text), 0, contents), path(graph(changed), 0, contents)
    assert [role for role in ROLES if before[role].key == after[role].key] == kept


@pytest.mark.parametrize(
    ("lines", "role"),
    [
        ("strategy: search\ndrop: 2\n", "plan"),
        ("metric: reverse\ndrop: 2\nrepair: true\n", "prune"),
        ("metric: ppl\ndrop: 2\nheal: {data: train.jsonl, layers_per_round: 1}\n", "heal"),
        ("metric: reverse\ndrop: 2\nheal: {data: mix}\n", "heal"),
    ],
)
def test_another_text_makes_another_step(graph, lines, role):
    before, after = (path(graph("model: a\n" + lines, **digests))[role].key for digests in ({}, {"mix": "other"}))
    assert before != after


def test_other_contents_and_versions_make_other_steps(graph, monkeypatch):
    found = graph(ONE)
    before = {step.key for step in path(found).values()}
    for identity in ({"weights": "b", "config": ""}, {**found.models["a"].identity, "beside": "another tokenizer"}):
        assert not before & {step.key for step in path(replace(found, models={"a": Model(identity, 8)})).values()}
    monkeypatch.setattr("shortstack.machine.cache.library_versions", lambda: {"torch": "99"})
    assert not before & {step.key for step in path(graph(ONE)).values()}


def test_in_rounds_one_step_prunes_and_heals(graph):
    found = path(graph(ONE + "heal: {data: train.jsonl, layers_per_round: 1}\n"))
    assert [(role, step.kind) for role, step in found.items()] == [
        ("evaluate_base", "evaluate"),
        ("heal", "rounds"),
        ("evaluate_healed", "evaluate"),
    ]
    assert found["heal"].arguments["rounds"]["step"] == 1


def test_the_teacher_is_the_base_model(graph):
    found = path(graph(ONE + "heal: {data: train.jsonl, loss: distill}\n"))["heal"]
    assert (found.places["base"], found.inputs["base"]["weights"]) == ("a", "a")
    assert "base" not in path(graph(ONE + HEAL))["heal"].places


def test_models_of_one_shape_share_a_profile(graph):
    found = graph("model: a\nlayers: ['1', '2']\nprofile: true\n")
    first, second = (
        path(found, number, lambda step: {"identity": {"weights": step.key, "config": "seven"}}) for number in (0, 1)
    )
    assert first["prune"].key != second["prune"].key
    assert first["profile"].key == second["profile"].key != first["profile_base"].key
