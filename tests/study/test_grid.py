"""A study's file: which trials it spells out, and what is said of a wrong one."""

import json
from dataclasses import replace

import pytest

from shortstack.errors import InputError, PlanError
from shortstack.machine.formats import amount_of, option_words
from shortstack.scoring import METRICS
from shortstack.study.grid import parse_study, schema
from shortstack.study.steps import expanded

QUICK = "{name: quick, method: lora, data: pydoc, num_train_epochs: 1}"


def trials(text):
    return [trial.settings() for trial in parse_study(text, where="study.yaml").trials]


def test_the_grid_is_every_combination_in_the_order_of_the_file():
    found = trials(f"models: [a, b]\nmetrics: [ppl, bi]\ndrop: [25%, 8]\nheal: [none, {QUICK}]\n")
    assert len(found) == 16
    names = [(each["model"], each["metric"], each["drop"], each["heal"] and each["heal"]["name"]) for each in found]
    assert names[:5] == [
        ("a", "ppl", "25%", None),
        ("a", "ppl", "25%", "quick"),
        ("a", "ppl", "8", None),
        ("a", "ppl", "8", "quick"),
        ("a", "bi", "25%", None),
    ]
    assert found[1]["heal"] == {"name": "quick", "method": "lora", "data": "pydoc", "num_train_epochs": 1.0}


def test_a_range_of_drops_is_in_percent_and_includes_its_end():
    found = trials("models: [a]\nmetrics: [ppl]\ndrop: {from: 5, to: 75, step: 5}\n")
    assert [each["drop"] for each in found] == [f"{percent}%" for percent in range(5, 80, 5)]


def test_what_changes_nothing_makes_no_second_trial():
    """reverse looks at no text, named layers are as many as they are."""
    two = "calibration: [{samples: 1}, {samples: 50}]\ndrop: [25%, 50%]\n"
    found = trials(f"models: [a]\nmetrics: [reverse, bi, layers 3-5]\n{two}")
    assert [
        (each["metric"], each["drop"], each["calibration"] and each["calibration"]["samples"]) for each in found
    ] == [
        ("reverse", "25%", None),
        ("reverse", "50%", None),
        ("bi", "25%", 1),
        ("bi", "50%", 1),
        ("bi", "25%", 50),
        ("bi", "50%", 50),
        ("layers 3-5", None, None),
    ]


def test_trials_add_to_the_grid_and_take_its_first_where_they_name_nothing():
    found = trials(
        f"models: [a, b]\nmetrics: [reverse]\ndrop: [50%, 25%]\nheal: {QUICK}\n"
        "trials:\n- {metric: [bi, ppl], strategy: [step 1, step 4], heal: quick}\n"
    )
    assert len(found) == 4 + 4
    assert {(each["model"], each["drop"], each["heal"]["name"]) for each in found[4:]} == {("a", "50%", "quick")}
    assert [(each["metric"], each["strategy"]) for each in found[4:]] == [
        ("bi", "step 1"),
        ("bi", "step 4"),
        ("ppl", "step 1"),
        ("ppl", "step 4"),
    ]


def test_exceptions_leave_out_every_trial_that_has_one_value_of_each():
    text = f"models: [a]\nmetrics: [ppl, bi]\ndrop: [25%, 50%]\nrepair: [false, true]\nheal: [none, {QUICK}]\n"
    left = trials(text + "except:\n- {metric: bi, drop: [50%]}\n- {repair: true, heal: quick}\n")
    assert len(trials(text)) == 16
    assert len(left) == 16 - 4 - 3
    assert not [each for each in left if each["metric"] == "bi" and each["drop"] == "50%"]
    assert not [each for each in left if each["repair"] and each["heal"]]


def test_the_same_trial_twice_is_one_and_its_id_is_of_its_settings():
    text = "models: [a]\nmetrics: [ppl, ppl]\ntrials:\n- {metric: ppl}\n"
    (trial,) = parse_study(text, where="study.yaml").trials
    (again,) = parse_study("models: [a]\nmetrics: [ppl]\n", where="other.yaml").trials
    assert trial.id == again.id
    assert json.loads(json.dumps(trial.settings())) == trial.settings()


def test_a_recipe_is_a_way_to_heal_and_its_options_can_be_changed():
    found = trials(
        "models: [a]\nmetrics: [ppl]\nheal: [paper-lora, {recipe: paper-lora, name: short, num_train_epochs: 1}]\n"
    )
    first, second = (each["heal"] for each in found)
    assert (first["name"], first["num_train_epochs"], first["data"]) == ("paper-lora", 2.0, "yahma/alpaca-cleaned")
    assert (second["name"], second["num_train_epochs"], second["lora_r"]) == ("short", 1.0, 8)
    assert "seed" not in first
    (trial,) = parse_study("models: [a]\nmetrics: [ppl]\nheal: paper-lora\nseeds: [7]\n", where="s").trials
    assert trial.heal_arguments["seed"] == 7


def test_the_layers_that_train_take_the_place_of_a_recipe_s():
    (trial,) = parse_study(
        "models: [a]\nmetrics: [ppl]\nheal: {recipe: paper-last3, name: x, train_layers: 3-5}\n", where="s"
    ).trials
    assert trial.heal_arguments["train_layers"] == "3-5"
    assert trial.heal_arguments["train_last"] is None


@pytest.mark.parametrize("metric", ["random", "random block", "random lowest", "random-authors block", "reverse block"])
def test_what_draws_gives_every_seed_layers_of_its_own(metric):
    found = parse_study(f"models: [a]\nmetrics: [{metric}]\ndrop: [2]\nseeds: [0, 1, 2, 3]\n", where="s").trials
    removed = {trial.choice.plan(8, trial.calibration_arguments["seed"]).removed for trial in found}
    assert (len(removed) > 1) == METRICS[metric.partition(" ")[0]].draws == metric.startswith("random")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [a]\nmetricss: [ppl]\n", "line 2: .* found metricss. .*did you mean metrics"),
        (
            "models: [a]\nmetrics: [ppl]\nheal:"
            "\n- none\n- {method: lora, data: a, num_train_epoch: 2}\n",
            "line 5: .*heal.1.*epochs",
        ),
        ("models: [a]\nmetrics: [ppl]\nevaluation: {limit: 0%}\n", "line 3: .*limit: at least 1, or a share .*found '0%'"),
        ("models: [a]\nmetrics: [ppl]\nheal: {data: a, max_samples: 1}\n", "line 3: max_samples: .*at least 2, or a share"),
        ("models: [a]\nmetrics: [ppl]\nheal: {data: a, learning_rate: fast}\n", "line 3: .*heal.learning_rate.*number"),
        ("models: [a]\nmetrics: [ppl]\ndrop: {from: 5, too: 50, step: 5}\n", "line 3: .*mean to"),
        ("models: [a]\nmetrics: [ppl]\nevaluation:\n  perplexities: [pydoc]\n", "line 4: .*mean perplexity"),
        ("models: [a]\nmetrics: [ppl]\ntrials:\n- {metric: bi}\n- {metric: bi, models: b}\n", "line 5: .*mean model"),
        ("", "found nothing"),
        ("models: [a\nb: c", "line 2: expected YAML, found expected ',' or '\\]'"),
        ("metrics: [ppl]\n", "the key models, found only metrics. To fix it: add models"),
        ("models: [a]\nmetrics: [ppl]\ndrop: lots\n", "line 3: drop: .*To fix it: give a count such as 8, or a share"),
        ("models: []\nmetrics: [ppl]\n", "line 1: .*at least one"),
        ("models: [a]\n", "at least one trial"),
        ("models: [a]\nmetrics: [pppl]\n", "line 2: metric: expected one of random.*did you mean ppl"),
        ("models: [a]\nmetrics: [ppl]\ndrop:\n- 8\n- 120%\n", "line 5: drop: "),
        ("models: [a]\nmetrics: [ppl]\ncalibration: {samples: 0}\n", "line 3: samples: .*windows, or all"),
        ("models: [a]\nmetrics: [ppl]\nrepair: {samples: 7}\n", "line 3: .*samples: .*at least 8"),
        ("models: [a]\nmetrics: [ppl]\nstrategy: twice\n", "line 3: strategy: .*write it like step 1"),
        ("models: [a]\nmetrics: [ppl]\nheal: paper-lor\n", "line 3: .*did you mean paper-lora"),
        ("models: [a]\nmetrics: [ppl]\nheal: {method: lora}\n", "add data: pydoc"),
        ("models: [a]\nmetrics: [ppl]\nseeds: [-1]\n", "line 3: .*seeds.*greater than or equal to 0"),
        ("models: [a]\nmetrics: [ppl search]\n", "strategy or metric, not both"),
        (
            "models: [a]\nmetrics: [ppl]\nheal: [paper-lora, {recipe: paper-lora, num_train_epochs: 1}]\n",
            "line 3: heal: .*paper-lora with other options.*a name of its own",
        ),
        (
            "models: [a]\nmetrics: [ppl]\nheal: [paper-lora, {name: paper-lora, recipe: paper-lora, num_train_epochs: 1}]\n",
            "line 3: heal: .*paper-lora with other options.*a name of its own",
        ),
        ("models: [a]\nmetrics: [ppl]\ntrials:\n- {metric: bi, seed: -1}\n", "line 4: .*seed.*greater than or equal to 0"),
        (
            "models: [a]\nmetrics: [ppl]\nheal:\n- none\n- {method: lora}\n",
            "line [45]: heal: lora: expected data",
        ),
        ("models: [a]\nmetrics: [ppl]\nheal: {data: pydoc, lora_r: 4}\n", "line 3: lora_r: .*of the method partial"),
        ("models: [a]\nmetrics: [ppl]\nheal: {data: pydoc, seed: 4}\n", "seeds: "),
        ("models: [a]\nmetrics: [search]\nstrategy: step 1\n", "except: "),
        ("models: [a]\nmetrics: [reverse]\nstrategy: step 1\n", "healing between"),
        (f"models: [a]\nmetrics: [ppl]\nstrategy: step 1\nrepair: true\nheal: {QUICK}\n", "no repair"),
        (f"models: [a]\nmetrics: [ppl]\nheal: [{QUICK}, {QUICK.replace('epochs: 1', 'epochs: 2')}]\n", "name of its own"),
        ("models: [a]\nmetrics: [ppl]\ntrials:\n- {drop: 8}\nresources: {heel: {}}\n", "line 5"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_explained(text, said):
    with pytest.raises(InputError, match=f"(?s){said}"):
        parse_study(text, where="study.yaml")


def test_the_schema_knows_every_key_of_a_study_and_refuses_others():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    good = {
        "models": ["a"],
        "metrics": ["ppl"],
        "drop": {"from": 5, "to": 50, "step": 5},
        "heal": ["none", {"data": "a"}],
    }
    assert validator.is_valid(good | {"except": [{"metric": "ppl"}], "trials": [{"drop": 8}]})
    assert not validator.is_valid(good | {"metric": ["ppl"]})
    assert not validator.is_valid(good | {"heal": {"epoch": 1}})
    for wrong in ({"lora_r": 0}, {"lora_dropout": 1}, {"learning_rate": 0}, {"loss": "mse"}):
        (name,) = wrong
        assert not validator.is_valid(good | {"heal": [{"data": "a", **wrong}]}), name
    for share in (100, 0.1, "10%", None):
        shared = {"evaluation": {"limit": share, "samples": share}, "heal": [{"data": "a", "max_samples": share}]}
        assert validator.is_valid(good | shared)
        assert parse_study(json.dumps(good | shared), where="s")


@pytest.mark.parametrize(("written", "meant"), [("10%", 0.1), ("0.25", 0.25), ("1.0", 1.0), ("200", 200)])
def test_shares_of_a_file_are_read_and_written_as_they_are_typed(written, meant):
    evaluation = f"evaluation: {{limit: {written}, samples: {written}}}"
    text = f"models: [a]\nmetrics: [ppl]\n{evaluation}\nheal: {{data: b, max_samples: {written}}}\n"
    study = parse_study(text, where="s")
    heal = dict(study.trials[0].heal.options)
    for found in (study.evaluation.limit, study.evaluation.samples, heal["max_samples"]):
        assert (type(found), found) == (type(meant), meant)
    for name in ("limit", "max_samples"):
        (_, typed) = option_words({name: meant})
        assert amount_of(typed) == meant, "the same again from the command line"


def test_variables_of_the_environment_are_replaced(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expanded({"texts": ["$DATA/a.txt", "${DATA}/b.txt", "pydoc"], "n": 1}) == {
        "texts": ["/data/a.txt", "/data/b.txt", "pydoc"],
        "n": 1,
    }
    with pytest.raises(InputError, match="NOWHERE"):
        expanded("$NOWHERE/a.txt")


def test_more_layers_than_a_model_has_are_said_of_the_model_and_the_key():
    ppl, named = parse_study("models: [a]\nmetrics: [ppl, 'layers 1,3-4']\ndrop: 25%\n", where="s").trials
    assert (ppl.amount(8), named.amount(8)) == (2, 3)
    with pytest.raises(PlanError, match=r"a: drop: expected between 1 and 7 .*found 400 .*a smaller count, or 25%"):
        replace(ppl, drop="400").amount(8)
