"""The public door: names, doctests, and what importing costs."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

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
    needed = {"harness": "lm_eval", "task_amount": "lm_eval", "vllm": "vllm"}
    if (extra := needed.get(name.removeprefix("shortstack.evaluation."))) is not None:
        pytest.importorskip(extra)
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
    ],
)
def test_words_that_are_wrong_for_any_model_are_refused_without_torch(arguments):
    done = without_torch(arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--data pydoc --method none", "--method"),
        ("--data pydoc --method lora --last 0", "--last"),
        ("--data pydoc --near-cut 1 --layers 3", "--layers"),
        ("--data pydoc --method full --rank 4", "--rank"),
        ("--data pydoc --rank 8", "--rank"),
        ("--data pydoc --method lora --dropout 1", "--dropout"),
        ("--data pydoc --lr 0", "--lr"),
        ("--data pydoc --epochs nan", "--epochs"),
        ("--data pydoc --batch-size 5 --micro-batch-size 2", "--batch-size"),
        ("--data pydoc --loss mse", "--loss"),
        ("--data pydoc --loss distill", "--teacher"),
        ("--data pydoc --teacher demo", "--teacher"),
        ("--data pydoc --step 1 --drop 4 --metric repaired-window", "--metric"),
        ("--data pydoc --step 1 --drop 120%", "--drop"),
        ("--data pydoc --recipe paper-lora --layers 3 --last 2", "--layers"),
        ("--data missing.jsonl", "missing.jsonl"),
        ("--data missing", "missing"),
        ("--data pydoc --plot curve.doc", "curve.doc"),
        ("--data pydoc --plot there", "there"),
        ("--data pydoc -o there", "there"),
        ("--data pydoc --resume -o there", "there"),
        ("", "--data"),
    ],
)
def test_what_is_wrong_with_healing_whatever_the_model_is_said_before_torch_is_imported(arguments, said, tmp_path):
    (tmp_path / "there").mkdir()
    done = without_torch(["heal", "demo", "-o", "x", *arguments.split()], tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"Error: {said}\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def without_torch(arguments: list[str], folder: Path = Path()) -> subprocess.CompletedProcess[str]:
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
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=folder
    )


def test_help_lists_options_under_the_heading_of_their_group():
    shown = CliRunner().invoke(app, ["heal", "--help-all"]).stdout
    headings = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    learnt = "What the model learns from"
    assert headings[:5] == ["Examples", "Arguments", "Options", learnt, "Which part trains, and how"]
    assert shown.index(f"{learnt}:") < shown.index("--max-samples") < shown.index("Which part trains")
    assert shown.count("--max-samples ") == 1
