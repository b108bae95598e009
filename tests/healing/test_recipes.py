"""Recipes: the paper's numbers, and errors with the line of a wrong file."""

import pytest

from command import invoke
from shortstack.errors import InputError
from shortstack.healing.config import check_loggers
from shortstack.healing.methods import config_of
from shortstack.healing.recipes import read_recipe, recipe_names, with_recipe
from shortstack.machine.options import given


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_makes_a_config_and_the_papers_have_its_schedule(name):
    recipe = read_recipe(name)
    config = config_of(given(recipe.heal))
    assert recipe.title
    assert config.method.name == recipe.heal.method
    if name == "best":
        assert (config.loss, config.learning_rate) == ("distill", None)
        return
    assert recipe.plan.metric == "reverse"
    expected = {"num_train_epochs": 2, "learning_rate": 1e-5, "per_device_train_batch_size": 4, "warmup_steps": 100}
    expected |= {"lr_scheduler_type": "linear", "max_grad_norm": 1.0, "seed": 42, "batch_size": 64}
    assert {option: getattr(config, option) for option in expected} == expected
    assert config.data


def test_typed_options_replace_the_recipes():
    config = config_of(with_recipe({"num_train_epochs": 2, "seed": 0, "train_layers": "3"}, "paper-last3"))
    assert (config.seed, config.batch_size, config.method.train_layers, config.method.train_last) == (0, 64, "3", None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("heal:\n  num_train_epochs: 2\n  num_train_epoch: 3\n", "line 3"),
        ("title: x\nheel: {}\n", "line 2"),
        ("heal:\n  num_train_epochs: two\n", "line 2"),
        ("heal: [\n", "YAML"),
        ("- 1\n", "title, plan, heal"),
        ("heal:\n  metric: x\n", "line 2"),
        ("heal:\n  learning_rate: .nan\n", "line 2"),
        ("heal:\n  method: lore\n", "line 2"),
        ("heal:\n  train_last: 1\n  train_layers: 1-2\n", "line 3"),
        ("plan:\n  metric: none\n", "line 2"),
        ("plan:\n  samples: lots\n", "line 2"),
        ("plan:\n  repair_samples: 3\n", "line 2"),
        ('heal:\n  train_layers: "1"\nplan:\n  layers: "1"\n  drop: 1\n', "line 4"),
        ("heal: {data: pydoc, top_k: 3}\n", "line 1"),
        ("heal: {lora_r: 4}\n", "line 1"),
    ],
)
def test_wrong_recipe_is_refused_with_its_line(text, line, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"(?s){path}.*{line}"):
        read_recipe(str(path))


def test_error_that_only_the_model_shows_names_the_recipes_line_unless_typed(folder, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("heal:\n  data: pydoc\n  train_last: 9\n")
    for words, said in (((), f"{path}, line 3: train_last"), (("--train-last", "10"), "train_last: ")):
        command = ["heal", str(folder), "-o", str(tmp_path / "out"), "--recipe", str(path), *words]
        error = invoke(*command).exception
        assert isinstance(error, InputError)
        assert str(error).startswith(said)
    assert not (tmp_path / "out").exists()


def test_missing_logger_is_refused(monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb"])
    check_loggers(["wandb"])
    with pytest.raises(InputError, match="pip install trackio"):
        check_loggers(["wandb", "trackio"])


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--data", "pydoc", "--layers-per-round", "1"], "drop"),
        (["--recipe", "paper-lastt3"], "recipe"),
        ([], "data"),
        (["--data", "pydoc", "--loss", "distill"], "base"),
        (["--data", "pydoc", "--data", "self"], "base"),
        (["--data", "pydoc", "--teacher", "demo"], "teacher"),
        (["--data", "pydoc", "--report-to", "nothing"], "report_to"),
        (["--data", "copying", "--loss", "distill", "--next-token-weight", "1"], "next_token_weight"),
        (["--data", "pydoc", "--lora-r", "4"], "lora_r"),
    ],
)
def test_contradictory_options_are_refused_before_any_work(words, option, folder, tmp_path):
    error = invoke("heal", str(folder), "-o", str(tmp_path / "out"), *words).exception
    assert isinstance(error, InputError)
    assert error.option == option
    assert not list(tmp_path.glob("out*"))
