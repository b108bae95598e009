"""--help, how values are typed, and what is said of options that are none."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from command import invoke, names, options, read
from shortstack.cli.parsing import nearest
from shortstack.cli.verbs import VERBS, listing
from shortstack.errors import InputError

LAST = ["Compute", "Checkpoint", "Output"]  # the headings of what verbs share


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def said(*words):
    ended = invoke(*words)
    assert ended.exit_code == 0, ended
    return ended.stdout


def refusal(*words):
    error = invoke(*words).exception
    assert isinstance(error, InputError), error
    return error


def docstring(verb):
    name = verb.replace("-", "_")
    return inspect.getdoc(getattr(import_module(f"shortstack.cli.{name}"), name))


def headings(text):
    return re.findall(r"^(\w[^:\n]*):", text, re.MULTILINE)


def test_the_list_of_verbs_has_the_first_line_of_each_and_imports_none():
    for verb, summary in VERBS.items():
        assert summary == docstring(verb).splitlines()[0]
        assert f"  {verb:11}  {summary}\n" in listing()
    assert all(len(line) <= 120 for line in listing().splitlines())
    code = (
        "import sys; from shortstack.cli import main\n"
        "try:\n    main()\nfinally:\n    print([name for name in sys.modules])"
    )
    listed = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True).stdout
    imported = ast.literal_eval(listed.splitlines()[-1])
    assert "shortstack.cli.app" in imported
    assert not {f"shortstack.cli.{verb.replace('-', '_')}" for verb in VERBS} & {*imported}
    assert "cyclopts" not in imported
    assert listing() in listed
    assert said() == said("-h") == listing()


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option_and_the_short_form_names_it(verb):
    long, short = said(verb, "--help"), said(verb, "-h")
    for option in options(verb):
        name = next(each for each in option.names if each.startswith("--"))
        assert re.search(rf"^  (-\w, )?{name}\b", long, re.MULTILINE)
        assert re.search(rf"[:,]\s+{name}[,\n]", short)
    assert headings(long)[1:] == headings(short)[1:]  # after usage
    assert all(len(line) <= 80 for line in long.splitlines() if not line.startswith("$"))


@pytest.mark.parametrize("verb", VERBS)
def test_headings_that_verbs_share_are_the_last_ones_in_one_order(verb):
    found = headings(said(verb, "--help"))
    assert [each for each in found if each in LAST] == [each for each in LAST if each in found]
    assert found[-1] in (*LAST, "Options")


@pytest.mark.parametrize("verb", VERBS)
def test_the_one_example_of_a_verb_is_read_and_stands_in_both_forms(verb):
    (example,) = re.findall(r"^\$ shortstack (.*)$", docstring(verb), re.MULTILINE)
    assert example.split()[0] == verb
    read(*shlex.split(example))  # raises for an unknown option, or one that lacks
    for flag in ("--help", "-h"):
        assert f"$ shortstack {example}" in said(verb, flag)


def test_an_option_twice_means_the_last():
    assert read("score", "m", "--metric", "bi", "--metric", "kl", "-o", "a", "--output", "b")["options"].metric == "kl"
    assert read("score", "m", "--stream", "--no-stream")["session"].compute.stream is False


def test_underscores_are_dashes():
    assert read("evaluate", "m", "--num_fewshot", "5", "--tasks", "piqa")["config"].num_fewshot == 5


def test_only_what_is_typed_of_heals_options_goes_before_the_recipe():
    given = read("heal", "m", "-o", "out", "--max_steps", "5", "--dry-run")
    assert given["typed"] == {"max_steps": 5}
    assert given["run"].dry_run is True
    assert not read("heal", "m", "-o", "out").get("typed")


@pytest.mark.parametrize(
    ("words", "where", "expected", "found"),
    [
        (["score", "m", "--lenght", "3"], "--lenght", "an option of shortstack score", "none of that name"),
        (["heal", "m"], "--output", "a value", "none"),
        (["score"], "MODEL", "a value", "none"),
        (["score", "m", "--metric"], "--metric", "a value", "none"),
        (["score", "m", "n"], "shortstack score", "no more arguments", "n"),
        (["score", "m", "--seed", "x"], "--seed", "a whole number", "'x'"),
        (["score", "m", "--length=2.5"], "--length", "a whole number", "'2.5'"),
        (["heal", "m", "-o", "x", "--weight-decay", "x"], "--weight-decay", "a number", "'x'"),
        (["score", "m", "--length", "3"], "length", "at least 4", "3"),
        (["score", "m", "--dtype", "float"], "dtype", "one of auto, float32, bfloat16, float16", "'float'"),
        (["scor"], "shortstack", "a verb", "'scor'"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_four_parts(words, where, expected, found):
    error = refusal(*words)
    assert (error.place(error.option), error.expected, error.found) == (where, expected, found)
    assert error.fix
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lenght", "--length"),
        ("--batch-size", "--per-device-train-batch-size"),
        ("--metrics", "--metric"),
        ("--zork", None),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest_name(typed, meant):
    known = {name for verb in ("score", "heal") for name in names(verb)}
    assert nearest(typed, sorted(known)) == meant


def test_a_verb_and_a_list_that_are_none_are_answered_with_the_nearest():
    assert refusal("scor").fix == "did you mean score?"
    assert refusal("ls", "recipe").fix == "did you mean recipes?"


@pytest.mark.parametrize(
    ("typed", "meant"), [("10%", 0.1), ("0.25", 0.25), ("100%", 1.0), ("7", 7), ("1.0", 1.0), ("1", 1)]
)
def test_shares_are_heard_as_people_write_them(typed, meant):
    found = read("evaluate", "demo", "--tasks", "piqa", "--limit", typed)["config"].limit
    assert (type(found), found) == (type(meant), meant)


@pytest.mark.parametrize("typed", ["some", "1.5", "0%", "101%"])
def test_what_is_no_count_is_refused(typed):
    error = refusal("heal", "demo", "-o", "out", "--data", "pydoc", f"--max-samples={typed}")
    assert error.expected == "a whole number, or a share such as 10%"


def test_a_negative_count_is_refused_by_the_bounds():
    error = refusal("heal", "demo", "-o", "out", "--data", "pydoc", "--max-samples=-3")
    assert (error.option, error.expected) == ("max_samples", "at least 2, or a share such as 10%")
