"""--help and --help-all, and what other tools call our options."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

from shortstack.cli import app
from shortstack.cli.help import ALIASES, HELP, ORDER, spelled
from shortstack.cli.option_groups import _read
from shortstack.errors import InputError
from shortstack.evaluation import Tasks

VERBS = typer.main.get_command(app).commands
WIDTH = {"COLUMNS": "80"}


def said(*words):
    done = CliRunner().invoke(app, [*words], env=WIDTH)
    assert done.exit_code == 0, done.output
    return done.output


def names(command):
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts) if name.startswith("--")}


def test_every_verb_has_examples_and_no_other_has():
    assert set(HELP) == {"", *VERBS}
    assert all(len(shown.examples) == 3 for shown in HELP.values())


def test_the_list_of_verbs_has_the_first_line_of_each_and_imports_none():
    told = said("--help")
    for verb, command in VERBS.items():
        assert HELP[verb].summary == command.help.splitlines()[0]
        assert f"  {verb:8}  {HELP[verb].summary}\n" in told  # whole, in 80 columns
    code = (
        "import sys; from shortstack.cli import main\n"
        "try:\n    main()\nfinally:\n    print([name for name in sys.modules if name.startswith('shortstack.cli.')])"
    )
    listed = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True).stdout
    imported = {name.rpartition(".")[2] for name in ast.literal_eval(listed.splitlines()[-1])}
    assert "app" in imported
    assert not imported & {*VERBS}


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_the_common_options_and_help_all_shows_all(verb):
    shown, known = HELP[verb], names(VERBS[verb])
    some, every = said(verb, "--help"), said(verb, "--help-all")
    heads = {text: set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)) for text in (some, every)}
    assert {f"--{name}" for name in shown.options} <= known
    if shown.options:
        assert heads[some] == {*(f"--{name}" for name in shown.options), "--help", "--help-all"}
        assert f"{len(heads[every]) - len(heads[some])} more: shortstack {verb} --help-all" in some
    hidden = {"--no-" + name[2:] for name in known} | {"--help"} | (set() if shown.options else {"--help-all"})
    assert heads[every] - {"--help"} == {name for name in known if name not in hidden}


@pytest.mark.parametrize("verb", HELP)
def test_examples_are_read_and_stand_in_one_line(verb):
    told = said(*([verb] if verb else []), "--help")
    for example in HELP[verb].examples:
        assert f"  shortstack {example}\n" in told
        name, *words = shlex.split(example)
        with VERBS[name].make_context(name, words) as context:  # raises for an unknown option, or one that lacks
            assert context.params


@pytest.mark.parametrize("verb", VERBS)
def test_common_options_stand_in_one_order(verb):
    listed = re.findall(r"^  (?:-\w, )?--([a-z-]+)", said(verb, "--help"), re.MULTILINE)
    known = [name for name in listed if name in ORDER]
    assert known == sorted(known, key=ORDER.index)
    assert set(HELP[verb].options) <= set(ORDER)


def test_underscores_are_dashes_and_what_heal_does_anyhow_is_heard():
    assert spelled(["--num_train_epochs=3", "--max_steps", "9"], {"--epochs", "--max-steps"}) == [
        "--epochs=3",
        "--max-steps",
        "9",
    ]
    assert spelled(["--bf16", "my_file"], {"--lr"}) == ["my_file"]
    assert spelled(["--strange_one"], {"--lr"}) == ["--strange_one"]
    with VERBS["heal"].make_context("heal", ["m", "-o", "out", "--bf16", "--max_steps", "5"]) as context:
        assert context.params["max_steps"] == 5
    with VERBS["sweep"].make_context("sweep", ["m", "--tasks", "piqa"]) as context:
        assert context.params["task"] == "piqa"
    with VERBS["evaluate"].make_context("evaluate", ["m", "--num_fewshot", "5"]) as context:
        assert context.params["num_fewshot"] == 5


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-size", "4", "--per-device-train-batch-size", "8"],
        ["--learning_rate=1", "--lr=2"],
        ["--output-dir", "a", "-o", "b"],
        ["-o", "a", "--output", "b"],
    ],
)
def test_an_option_under_two_names_is_refused(words):
    named = [word.partition("=")[0] for word in words if word.startswith("-")]
    with pytest.raises(InputError, match=f"{named[1]}.*{named[0]}, which is the same"):
        spelled(words, {"--batch-size", "--lr", "--output", "-o"})


def test_an_option_twice_under_one_name_and_arguments_twice_go_through():
    words = ["same", "same", "--lr", "1", "--lr", "2", "--learning_rate", "3", "--learning-rate", "4"]
    assert spelled(words[:6], {"--lr"}) == words[:6]
    assert spelled(words[6:], {"--lr"}) == ["--lr", "3", "--lr", "4"]


@pytest.mark.parametrize(
    ("verb", "typed", "fix"),
    [
        ("heal", "--fp16", "leave it out: what trains computes in bf16"),
        ("heal", "--dtype=float16", "leave it out: what trains computes in bf16"),
        ("heal", "--gradient_accumulation_steps", "write --batch-size, the samples of a whole step"),
        ("heal", "--load_in_4bit", "write --method qlora"),
        ("score", "--model", "name the model without an option"),
        ("evaluate", "--model_args", "name the model without an option"),
        ("prune", "--n-layers", "write --drop"),
    ],
)
def test_what_is_no_option_here_is_answered_with_what_to_do(verb, typed, fix):
    with pytest.raises(InputError, match=f"{typed.partition('=')[0]}: .*{fix}"):
        CliRunner().invoke(app, [verb, "m", typed, "4"], catch_exceptions=False)


def test_fp16_is_heard_where_one_may_choose():
    with VERBS["evaluate"].make_context("evaluate", ["m", "--fp16"]) as context:
        assert context.params["dtype"] == "float16"


@pytest.mark.parametrize(
    ("typed", "ours"), [("--num-layers", "--drop"), ("--ratio", "--drop"), ("--target_size", "--params")]
)
def test_what_others_call_something_else_is_answered_with_ours(typed, ours):
    with pytest.raises(InputError, match=f"write {ours}"):
        CliRunner().invoke(app, ["prune", "m", "-o", "out", typed, "4"], catch_exceptions=False)


def test_a_list_that_is_none_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean recipes"):
        CliRunner().invoke(app, ["ls", "recipe"], catch_exceptions=False)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_that_option_and_is_no_option_of_its_own(alias):
    ours, *rest = ALIASES[alias]
    verbs = [name for name, command in VERBS.items() if ours in names(command)]
    assert verbs
    for name in verbs:
        known = names(VERBS[name])
        if alias not in known:
            value = [] if rest else ["7"]
            assert spelled([alias, *value], known) == [ours, *rest, *value]
            if not rest:
                assert spelled([f"{alias}=7"], known) == [f"{ours}=7"]
    assert spelled([alias, "7"], set()) == [alias, "7"]


def test_aliases_reach_the_verb():
    words = ["pruned", "-o", "out", "--data", "pydoc", "--learning-rate", "0.5", "--lora-r=3", "--optim", "sgd"]
    with VERBS["heal"].make_context("heal", words) as context:
        assert (context.params["lr"], context.params["rank"], context.params["optimizer"]) == (0.5, 3, "sgd")


def test_a_near_miss_names_the_right_option():
    with pytest.raises(InputError, match="write --lr, or --learning-rate"):
        CliRunner().invoke(app, ["heal", "pruned", "-o", "out", "--learnin-rate=1"], catch_exceptions=False)
    done = CliRunner().invoke(app, ["heal", "pruned", "-o", "out", "--epoch", "1"], env=WIDTH)
    assert "--epochs" in done.output


@pytest.mark.parametrize(("typed", "meant"), [("64", 64), ("1k", 1000), ("2.5K", 2500), ("1M", 1_000_000)])
def test_counts_are_heard_as_people_write_them(typed, meant, tmp_path):
    """The number reaches the option: two samples are too few to hold so many out."""
    words = ["heal", "demo", "-o", str(tmp_path / "out"), "--data", "pydoc", "--max-samples", typed]
    with pytest.raises(InputError, match=f"fewer than the {meant} samples"):
        CliRunner().invoke(app, [*words, "--held-out", "2000000"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("typed", "meant"), [("10%", 0.1), ("0.25", 0.25), ("100%", 1.0), ("7", 7), ("1.0", 1.0), ("1", 1), ("1k", 1000)]
)
def test_shares_are_heard_as_people_write_them(typed, meant):
    words = ["demo", "--tasks", "piqa", "--limit", typed]
    with VERBS["evaluate"].make_context("evaluate", words) as context:
        (field,) = [each for each in fields(Tasks) if each.name == "limit"]
        read = _read(context.params["limit"], field)
    assert (type(read), read) == (type(meant), meant)
    assert Tasks("piqa", limit=read).limit == meant


@pytest.mark.parametrize("wrong", [0.0, 1.5, -0.1, 0, float("nan")])
def test_shares_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="limit: expected at least 1, or a share such as 10%"):
        Tasks("piqa", limit=wrong)


@pytest.mark.parametrize("typed", ["some", "1.5", "-3", "1kk", "0%", "101%"])
def test_what_is_no_count_is_refused(typed, tmp_path):
    words = ["heal", "demo", "-o", str(tmp_path / "out"), "--data", "pydoc", f"--max-samples={typed}"]
    with pytest.raises(InputError, match="such as 64 or 1k, or a share above 0% and up to 100%"):
        CliRunner().invoke(app, words, catch_exceptions=False)
