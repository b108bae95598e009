"""Recipes: the paper's numbers, and what is said of a wrong file."""

import pytest

from command import invoke
from shortstack.cli.heal import HealRun
from shortstack.errors import InputError
from shortstack.healing import IterativeSchedule
from shortstack.healing.recipes import read_recipe, recipe_names, with_recipe
from shortstack.healing.task import check_loggers, option_defaults, task_of


def values(name, typed=()):
    return with_recipe({option: option_defaults()[option] for option in typed}, name)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_makes_a_task_and_the_papers_have_its_schedule(name):
    recipe, task = read_recipe(name), task_of(values(name))
    assert recipe.title
    assert task.method.name == recipe.heal.given["method"]
    if name == "best":
        assert (task.objective.loss, task.schedule.learning_rate) == ("distill", None)
        return
    assert recipe.plan.metric == "reverse"
    expected = {"num_train_epochs": 2, "learning_rate": 1e-5, "per_device_train_batch_size": 4, "warmup_steps": 100}
    expected |= {"lr_scheduler_type": "linear", "max_grad_norm": 1.0, "seed": 42}
    assert {option: getattr(task.schedule, option) for option in expected} == expected
    assert task.schedule.batch_size == 64
    assert task.data.data


def test_turns_come_from_the_recipe_with_their_plan():
    assert IterativeSchedule.of_options(values("paper-iterative-1-4-8")) == IterativeSchedule("8", 4, "reverse")
    assert IterativeSchedule.of_options(values("paper-lora")) is None


def test_turns_choose_on_the_plans_text_and_what_they_do_not_follow_is_refused(tmp_path):
    path = tmp_path / "turns.yaml"
    path.write_text("plan: {metric: ppl, drop: 4, text: notes.txt, samples: 6}\nheal: {step: 1, data: pydoc}\n")
    found = IterativeSchedule.of_options(with_recipe({}, str(path)))
    assert found == IterativeSchedule("4", 1, "ppl", "notes.txt", 6)
    path.write_text("plan:\n  drop: 4\n  strategy: block\nheal: {step: 1, data: pydoc}\n")
    with pytest.raises(InputError, match=r"turns\.yaml, line 3: .*healing in turns, which follows metric, drop, text"):
        with_recipe({}, str(path))


def test_what_was_typed_goes_before_the_recipe():
    task = task_of(values("paper-last3", typed={"lr_scheduler_type", "num_train_epochs", "seed", "last"}))
    assert (task.schedule.seed, read_recipe("paper-last3").heal.given["seed"]) == (0, 42)
    assert task.method.last is None
    assert task.schedule.batch_size == 64
    assert "last" not in values("paper-last3", typed={"layers"}), "which layers train is one thing"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heal:\n  num_train_epochs: 2\n  num_train_epoch: 3\n", "line 3.*did you mean num_train_epochs"),
        ("title: x\nheel: {}\n", "line 2.*did you mean heal"),
        ("heal:\n  num_train_epochs: two\n", "line 2.*valid number"),
        ("heal: [\n", "YAML"),
        ("- 1\n", "keys title, plan, heal"),
        ("heal:\n  teacher: x\n", "line 2.*found +teacher"),
        ("heal:\n  metric: x\n", "line 2.*found +metric"),
        ("heal:\n  learning_rate: .nan\n", "line 2: learning_rate: "),
        ("heal:\n  method: lore\n", "line 2: method: "),
        ("heal:\n  last: 1\n  layers: 1-2\n", "line 3: layers: "),
        ("plan:\n  metric: none\n", "line 2: metric: "),
        ("plan:\n  samples: lots\n", "line 2: samples: "),
        ("plan:\n  repair_samples: 3\n", "line 2: repair_samples: expected at least 8"),
        ('heal:\n  layers: "1"\nplan:\n  layers: "1"\n  drop: 1\n', "line 4: layers: "),
        ("heal: {data: pydoc, top_k: 3}\n", "loss: expected distill, which top_k, temperature and next_token_weight"),
        ("heal: {lora_r: 4}\n", "line 1: lora_r: .*an option of the method partial.*lora, rslora"),
    ],
)
def test_what_is_wrong_with_a_file_is_explained_with_its_line(text, said, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"(?s){path}.*{said}"):
        read_recipe(str(path))


def test_what_only_the_model_tells_is_explained_with_the_recipes_line_unless_it_was_typed(folder, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("heal:\n  data: pydoc\n  last: 9\n")
    for words, where in (((), f"{path}, line 3: last"), (("--train-last", "10"), "last")):
        command = ["heal", str(folder), "-o", str(tmp_path / "out"), "--recipe", str(path), *words]
        error = invoke(*command).exception
        assert isinstance(error, InputError)
        assert error.place(error.option) == where
    assert not (tmp_path / "out").exists()


def test_a_logger_that_is_missing_is_said_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb"])
    loggers = HealRun(report_to=" wandb,trackio").loggers
    check_loggers(loggers[:1])
    with pytest.raises(InputError, match=r"report_to: expected loggers that are installed: wandb.*pip install trackio"):
        check_loggers(loggers)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "1"], "give both, such as drop 25% and step 1"),
        (["--recipe", "paper-lastt3"], "did you mean paper-last3"),
        (["--recipe", "none.yaml"], "no such file"),
        ([], "data: expected text or instructions to learn from, found none. To fix it: name some, such as pydoc"),
        (["--data", "pydoc", "--loss", "distill"], "the loss distill needs, found none. To fix it: name it"),
        (["--data", "pydoc,self"], "the data self needs, found none. To fix it: name it"),
        (["--data", "pydoc", "--teacher", "demo"], "self use one, found demo. To fix it: leave it out"),
        (["--data", "pydoc", "--report-to", "nothing"], "pip install nothing, or name another"),
    ],
)
def test_halves_of_options_are_refused(words, said, folder, tmp_path):
    found = invoke("heal", str(folder), "-o", str(tmp_path / "out"), *words)
    assert isinstance(found.exception, InputError)
    assert said in str(found.exception)
    assert not list(tmp_path.glob("out*"))
