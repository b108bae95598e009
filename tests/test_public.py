"""The public door: names, doctests, and what importing costs."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import shortstack
from shortstack.cli import app

MODULES = [
    module.name
    for module in pkgutil.walk_packages(shortstack.__path__, "shortstack.")
    if not module.name.endswith("__main__")
]


def test_every_public_name_is_importable_and_sorted():
    assert sorted(shortstack.__all__) == sorted(set(shortstack.__all__))
    assert all(getattr(shortstack, name).__doc__ for name in shortstack.__all__ if name != "METRICS")
    with pytest.raises(AttributeError, match="banana"):
        shortstack.banana  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    if name == "shortstack.evaluation.harness":
        pytest.importorskip("lm_eval")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["ls", "metrics"], ["ls", "methods"], ["prune", "--help"]])
def test_help_and_ls_import_no_torch(arguments):
    done = without_torch(arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "demo"],
        ["plan", "demo", "--drop", "120%"],
        ["prune", "demo", "--layers", "3-1", "-o", "x"],
        ["prune", "demo", "--drop", "8", "--metric", "none", "-o", "x"],
        ["heal", "demo", "--data", "pydoc", "--method", "none", "-o", "x"],
    ],
)
def test_words_that_are_wrong_for_any_model_are_refused_without_torch(arguments):
    done = without_torch(arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")


def without_torch(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command in a fresh process, which fails if it imports torch or transformers."""
    code = """if True:
        import sys
        sys.argv = ["shortstack", *sys.argv[1:]]
        from shortstack.cli import main
        try:
            main()
        finally:
            assert not {"torch", "transformers"} & set(sys.modules)
    """
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_help_lists_options_under_the_heading_of_their_group():
    shown = CliRunner().invoke(app, ["heal", "--help"]).stdout
    headings = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[:4] == ["Arguments", "Options", "What is learnt from", "Which part trains, and how"]
    assert shown.index("What is learnt from:") < shown.index("--max-samples") < shown.index("Which part trains")
    assert shown.count("--max-samples ") == 1
