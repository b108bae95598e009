"""--help, how values are typed, and errors of the command line itself."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from command import invoke, options, read
from shortstack.cli.verbs import VERBS, listing
from shortstack.errors import InputError

LAST = ["Compute", "Checkpoint", "Output"]  # the headings that verbs share


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def printed(*words):
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


def test_list_of_verbs_has_the_first_line_of_each_and_imports_none():
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
    assert not {f"shortstack.cli.{verb.replace('-', '_')}" for verb in VERBS} & {*imported}
    assert not {"cyclopts", "pydantic", "torch"} & {*imported}
    assert listing() in listed
    assert printed() == printed("-h") == listing()


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option_in_80_columns(verb):
    text = printed(verb, "--help")
    for option in options(verb):
        name = next(each for each in option.names if each.startswith("--"))
        assert re.search(rf"^│ {name} ", text, re.MULTILINE), name
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("$"))
    headings = re.findall(r"^╭─ ([^─]*) ─", text, re.MULTILINE)
    assert [each for each in headings if each in LAST] == [each for each in LAST if each in headings]
    assert headings[-1] in (*LAST, "Options")


@pytest.mark.parametrize("verb", VERBS)
def test_example_of_a_verb_is_valid(verb):
    (example,) = re.findall(r"^\$ shortstack (.*)$", docstring(verb), re.MULTILINE)
    assert example.split()[0] == verb
    read(*shlex.split(example))  # raises for an unknown or missing option
    assert f"$ shortstack {example}" in printed(verb, "--help")


def test_last_of_a_repeated_option_counts():
    assert read("score", "m", "--metric", "bi", "--metric", "kl", "-o", "a", "--output", "b")["what"].metric == "kl"
    assert read("score", "m", "--stream", "--no-stream")["session"].compute.stream is False


@pytest.mark.parametrize(
    ("words", "option", "named"),
    [
        ("score m --seq-lenght 3", "", "--seq-length"),
        ("score m --zork --seq-lenght 3", "", "--zork"),
        ("heal m --lr 3", "", "--learning-rate"),  # before --output, which is missing
        ("heal m", "output", ""),
        ("score", "", "MODEL"),
        ("score m --metric", "metric", ""),
        ("score m n", "", "n"),
        ("score m --seed x", "seed", "'x'"),
        ("score m --seq-length=2.5", "seq_length", "'2.5'"),
        ("heal m -o x --weight-decay x", "weight_decay", "'x'"),
        ("score m --seq-length 3", "seq_length", "3"),
        ("score m --dtype float", "dtype", "float32"),
        ("evaluate m --tasks piqa --limit some", "limit", "'some'"),
        ("evaluate m --tasks piqa --limit 101%", "limit", "'101%'"),
        ("list recipe", "", "recipes"),
        ("scor", "", "score"),
    ],
)
def test_unreadable_words_are_refused(words, option, named):
    error = refusal(*words.split())
    assert error.option == option
    assert named in str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("typed", "meant"), [("10%", 0.1), ("0.25", 0.25), ("100%", 1.0), ("7", 7), ("1.0", 1.0), ("1", 1)]
)
def test_counts_and_shares_are_read(typed, meant):
    found = read("evaluate", "demo", "--tasks", "piqa", "--limit", typed)["config"].limit
    assert (type(found), found) == (type(meant), meant)
