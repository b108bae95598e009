"""Recipes: the paper's numbers, and what is said of a wrong file."""

import re
from dataclasses import fields

import pytest

from command import invoke
from shortstack.cli.heal import HealRun
from shortstack.errors import InputError
from shortstack.healing import METHODS, Turns
from shortstack.healing.recipes import HealPart, read_recipe, recipe_names, with_recipe
from shortstack.healing.task import check_loggers, option_defaults, task_of


def values(name, typed=()):
    return with_recipe({option: option_defaults()[option] for option in typed}, name)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_makes_a_method_a_schedule_and_an_objective(name):
    recipe, task = read_recipe(name), task_of(values(name))
    assert recipe.title
    assert task.method.name == recipe.heal.given["method"]
    assert task.schedule.learning_rate == recipe.heal.given["learning_rate"]
    assert task.objective.loss == recipe.heal.given.get("loss", "sft")


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("paper-")])
def test_the_papers_recipes_have_its_schedule(name):
    recipe, task = read_recipe(name), task_of(values(name))
    assert recipe.plan.metric == "reverse"
    schedule = task.schedule
    assert (
        schedule.num_train_epochs,
        schedule.learning_rate,
        schedule.batch_size,
        schedule.per_device_train_batch_size,
    ) == (2, 1e-5, 64, 4)
    assert (schedule.warmup_steps, schedule.lr_scheduler_type, schedule.max_grad_norm, schedule.seed) == (
        100,
        "linear",
        1.0,
        42,
    )
    assert task.data.data


def test_the_papers_partial_recipe_takes_its_steps():
    """51,760 rows less 2,000, two epochs of 64: some 1,555 steps (the paper's own count)."""
    task = task_of(values("paper-last3"))
    assert task.schedule.steps(51_760 - 2_000) == 1556
    assert task.method.to_dict()["last"] == 3


def test_turns_come_from_the_recipe_with_their_plan():
    assert Turns.of_options(values("paper-iterative-1-4-8")) == Turns("8", 4, "reverse")
    assert Turns.of_options(values("paper-lora")) is None


def test_a_recipe_cannot_name_the_teacher_nor_the_plan_among_heals_options(tmp_path):
    path = tmp_path / "a.yaml"
    for name in ("teacher", "metric", "drop"):
        path.write_text(f"heal:\n  {name}: x\n")
        with pytest.raises(InputError, match=rf"found +{name}"):
            read_recipe(str(path))


def test_what_was_typed_goes_before_the_recipe():
    task = task_of(values("paper-last3", typed={"learning_rate", "last"}))
    assert task.schedule.learning_rate == option_defaults()["learning_rate"]
    assert task.method.last is None
    assert task.schedule.batch_size == 64


@pytest.mark.parametrize("option", ["layers", "near_cut"])
def test_layers_that_are_typed_another_way_go_before_the_recipes_last(option):
    assert "last" not in values("paper-last3", typed={option})
    assert values("paper-last3")["last"] == 3


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("heal:\n  num_train_epochs: 2\n  num_train_epoch: 3\n", "line 3", "did you mean num_train_epochs"),
        ("title: x\nheel: {}\n", "line 2", "did you mean heal"),
        ("heal:\n  num_train_epochs: two\n", "line 2", "valid number"),
        ("heal: [\n", "a.yaml", "YAML"),
        ("- 1\n", "a.yaml", "keys title, plan, heal"),
    ],
)
def test_a_wrong_file_is_explained_with_its_line(text, where, said, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        read_recipe(str(path))
    assert where in str(error.value)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("heal:\n  num_train_epochs: 2\n  learning_rate: -1\n", "line 3: learning_rate"),
        ("heal:\n  learning_rate: .nan\n", "line 2: learning_rate"),
        ("heal:\n  method: lora\n  lora_dropout: 1\n", "line 3: lora_dropout"),
        ("heal:\n  method: lora\n  last: 0\n", "line 3: last"),
        ("heal:\n  method: lore\n", "line 2: method"),
        ("heal:\n  last: -1\n", "line 2: last"),
        ("heal:\n  near_cut: 1\n  layers: 1-2\n", "line 3: layers"),
        ("heal:\n  method: full\n  lora_r: 4\n", "line 3: lora_r"),
        ("heal:\n  max_samples: 1\n", "line 2: max_samples"),
        ("heal:\n  max_samples: 8\n  held_out: 8\n", "line 3: held_out"),
        ("heal:\n  weight_decay: -1\n", "line 2: weight_decay"),
        ("heal:\n  early_stopping_patience: 0\n", "line 2: early_stopping_patience"),
        ("heal:\n  gradient_accumulation_steps: 0\n", "line 2: gradient_accumulation_steps"),
        ("heal:\n  loss: mse\n", "line 2: loss"),
        ("heal:\n  loss: distill\n  temperature: 0\n", "line 3: temperature"),
        ("heal:\n  lr_scheduler_type: never\n", "line 2: lr_scheduler_type"),
        ("plan:\n  metric: none\n", "line 2: metric"),
        ("plan:\n  keep_last: -1\n", "line 2: keep_last"),
        ('heal:\n  layers: "1"\nplan:\n  layers: "1"\n  drop: 1\n', "line 4: layers"),
    ],
)
def test_a_value_out_of_its_range_is_explained_with_its_line(text, where, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_recipe(str(path))
    assert error.value.where == f"{path}, {where}"


def test_what_only_the_model_tells_is_explained_with_the_recipes_line_unless_it_was_typed(tmp_path):
    from zoo import speaking

    source, path = speaking(tmp_path / "source"), tmp_path / "a.yaml"
    path.write_text("heal:\n  data: pydoc\n  last: 9\n")
    for words, where in (((), f"{path}, line 3: last"), (("--last", "10"), "last")):
        command = ["heal", str(source), "-o", str(tmp_path / "out"), "--recipe", str(path), *words]
        error = invoke(*command).exception
        assert isinstance(error, InputError)
        assert error.place(error.option) == where
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("paper-last33", "did you mean paper-last3"), ("none.yaml", "no such file")]
)
def test_a_recipe_that_is_not_there_is_named_with_the_nearest(name, said):
    with pytest.raises(InputError, match=said):
        read_recipe(name)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_option_of_a_method_is_one_of_heal_and_of_recipes(method):
    names = {each.name for each in fields(method)}
    assert names <= option_defaults().keys()
    assert names <= HealPart.model_fields.keys()


@pytest.mark.parametrize("logger", ["wandb", "trackio", "tensorboard"])
def test_a_logger_that_is_missing_is_said_with_how_to_install_it(logger, monkeypatch):
    assert HealRun(report_to=f" {logger}").loggers == [logger]
    monkeypatch.setattr("shortstack.healing.task.find_spec", lambda _name: None)
    with pytest.raises(InputError, match=f"pip install {logger}") as error:
        check_loggers([logger])
    assert error.value.option == "report_to"


def test_options_that_a_method_does_not_know_are_refused():
    with pytest.raises(InputError, match="lora_r: expected an option that the method partial knows"):
        task_of({"method": "partial", "lora_r": 4})
    with pytest.raises(InputError, match="last: "):
        task_of({"method": "full", "last": 2})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "1"], "give both, such as drop 25% and step 1"),
        (["--drop", "2"], "give both, such as drop 25% and step 1"),
        (["--recipe", "paper-lastt3"], "did you mean paper-last3"),
        ([], "data: expected text or instructions to learn from, found none. To fix it: name some, such as pydoc"),
        (["--data", "pydoc", "--loss", "mse"], "sft, distill"),
        (["--data", "pydoc", "--loss", "distill"], "self_generate learn, found none. To fix it: name that model"),
        (["--data", "pydoc", "--optim", "adamm"], "adamw_torch"),
        (["--data", "pydoc", "--report-to", "nothing"], "install it, or name another: tensorboard"),
    ],
)
def test_halves_of_options_are_refused(words, said, tmp_path):
    from zoo import speaking

    source = speaking(tmp_path / "source")
    found = invoke("heal", str(source), "-o", str(tmp_path / "out"), *words)
    assert isinstance(found.exception, InputError)
    assert said in str(found.exception)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("heal", "said"),
    [
        (
            "{data: pydoc, top_k: 3}",
            "wrong.yaml: loss: expected distill, which top_k, temperature and hidden_weight shape",
        ),
        (
            "{data: pydoc, gradient_accumulation_steps: 0}",
            "wrong.yaml, line 1: gradient_accumulation_steps: expected at least 1",
        ),
        ("{data: pydoc, learning_rate: -1}", "wrong.yaml, line 1: learning_rate: expected a number above 0"),
    ],
)
def test_whatever_is_wrong_in_a_recipe_names_the_recipe_and_its_keys(heal, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(f"heal: {heal}\n")
    with pytest.raises(InputError, match=re.escape(said)):
        read_recipe("wrong.yaml")
