"""A study's file: the trials that it makes, and the errors of a wrong one."""

import pytest

from shortstack.errors import InputError
from shortstack.study import read_study
from shortstack.study.grid import schema

QUICK = "{name: quick, method: lora, data: pydoc, num_train_epochs: 1}"


@pytest.fixture
def study(tmp_path):
    def read(text):
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        return read_study(tmp_path / "study.yaml")

    return read


def columns(study, *names):
    """Some settings of each trial; of healing its name."""
    rows = [{**trial.settings(), "heal": trial.heal and trial.heal.name} for trial in study.trials]
    return [tuple(row.get(name) for name in names) for row in rows]


def test_every_combination_is_a_trial_in_the_order_of_the_file(study):
    grid = study(f"model: [a, b]\nmetric: [ppl, bi]\ndrop: [25%, 8]\nheal: [none, {QUICK}]\n")
    found = columns(grid, "model", "metric", "drop", "heal")
    assert len(found) == 16
    assert found[:3] == [("a", "ppl", "25%", None), ("a", "ppl", "25%", "quick"), ("a", "ppl", "8", None)]


def test_settings_without_effect_make_no_trials(study):
    text = "model: a\nmetric: [reverse, bi, bi]\ndrop: 2\ncalibration: [{samples: 1}, {samples: 50}]\n"
    found = study(
        f"{text}trials:\n- {{metric: bi}}\n- {{layers: 3-5, calibration: [{{samples: 1}}, {{samples: 2}}]}}\n"
    )
    samples = [trial.calibration and trial.calibration.samples for trial in found.trials]
    assert samples == [None, 1, 50, None], "reverse and named layers read no text"
    assert len({trial.id for trial in found.trials}) == 4


def test_added_trials_take_the_first_values_of_the_grid(study):
    grid = study(
        f"model: [a, b]\nmetric: [reverse, ppl]\ndrop: [50%, 25%]\nheal: {QUICK}\n"
        "trials:\n- {metric: bi, strategy: [lowest, block]}\n- {strategy: search}\n- {layers: 1-2}\n- {drop: 3}\n"
    )
    assert columns(grid, "model", "metric", "strategy", "layers", "drop", "heal")[8:] == [
        ("a", "bi", "lowest", None, "50%", "quick"),
        ("a", "bi", "block", None, "50%", "quick"),
        ("a", None, "search", None, "50%", "quick"),
        ("a", None, None, "1-2", None, "quick"),
        ("a", "reverse", None, None, "3", "quick"),
    ]


def test_exceptions_leave_out_trials_with_one_value_of_each(study):
    text = f"model: a\nmetric: [ppl, bi]\ndrop: [25%, 50%]\nrepair: [false, true]\nheal: [none, &quick {QUICK}]\n"
    grid = study(text + "except:\n- {metric: bi, drop: [50%]}\n- {repair: true, heal: *quick}\n")
    kept = columns(grid, "metric", "drop", "repair", "heal")
    assert len(kept) == 16 - 4 - 3
    assert not [row for row in kept if row[:2] == ("bi", "50%") or (row[2] and row[3])]


def test_a_recipe_gives_options_that_the_study_overrides(study):
    text = "- paper-lora\n- {recipe: paper-lora, name: short, lora_r: 4}\n"
    last = "- {recipe: paper-last3, train_layers: 3-5, layers_per_round: 1}\n"
    trials = study(f"model: a\nmetric: ppl\ndrop: 2\nheal:\n{text}{last}").trials
    assert [trial.heal.name for trial in trials] == ["paper-lora", "short", "paper-last3"]
    first, second, third = (trial.heal.options for trial in trials)
    assert (first.num_train_epochs, first.lora_r, first.data) == (2.0, 8, "yahma/alpaca-cleaned")
    assert (second.num_train_epochs, second.lora_r) == (2.0, 4)
    assert (third.train_layers, third.train_last, third.layers_per_round) == ("3-5", None, 1)


@pytest.mark.parametrize(
    ("which", "draws"), [("metric: random", True), ("metric: bi", True), ("metric: reverse", False)]
)
def test_seeds_change_what_draws_and_what_reads_text(study, which, draws):
    trials = study(f"model: a\n{which}\ndrop: 2\nseed: [1, 2]\n").trials
    assert [trial.selection_seed for trial in trials] == ([1, 2] if draws else [0, 0])


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("metricc: ppl", 3),
        ("metric: pppl", 3),
        ("metric: [ppl\nb: c", 4),
        ("metric: ppl\nstrategy: search", 4),
        ("metric: ppl\nseed: [-1]", 4),
        ("metric: ppl\nrepair: {samples: 7}", 4),
        ("metric: ppl\nheal:\n- none\n- {method: lora, data: a, num_train_epoch: 2}", 6),
        ("metric: ppl\nheal: {data: a, learning_rate: fast}", 4),
        ("metric: ppl\nheal: {data: a, seed: 4}", 4),
        (f"metric: ppl\nstrategy: block\nheal: {QUICK.replace('{', '{layers_per_round: 1, ')}", 5),
        ("metric: ppl\nevaluation:\n  perplexities: [pydoc]", 5),
        ("metric: ppl\ntrials:\n- {metric: bi}\n- {metrics: bi}", 6),
        ("metric: ppl\nheal: paper-lor", None),
        ("metric: ppl\nheal: {method: lora}", None),
        ("title: no trial", None),
    ],
)
def test_a_wrong_file_is_refused_by_its_line(study, lines, line):
    with pytest.raises(InputError, match=rf"study.yaml, line {line}" if line else None):
        study(f"model: a\ndrop: 2\n{lines}\n")


def test_the_schema_has_the_keys_of_a_study_and_no_others():
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema())
    validator.check_schema(schema())
    good = {
        "model": "a",
        "metric": ["ppl"],
        "drop": [8, "25%"],
        "heal": ["none", {"data": "a"}],
        "except": [{"drop": 8}],
    }
    assert validator.is_valid(good)
    for wrong in ({"metrics": "ppl"}, {"heal": {"epoch": 1}}, {"heal": [{"lora_r": 0}]}, {"trials": [{"models": "a"}]}):
        assert not validator.is_valid(good | wrong), wrong


def test_variables_of_the_environment_are_replaced(study, monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    text = "model: $DATA/a\nmetric: reverse\ndrop: 2\ntrials: [{model: '${DATA}/b'}]\n"
    assert study(text).models == ["/data/a", "/data/b"]
    with pytest.raises(InputError, match="NOWHERE"):
        study(f"{text}title: $NOWHERE\n")
