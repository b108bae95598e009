"""The public door: names, doctests, and what importing costs."""

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import shortstack
from zoo import tiny

NEEDED = {"shortstack.evaluation.harness": "lm_eval"}  # modules that import a package of an extra
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
    if (extra := NEEDED.get(name)) is not None:
        pytest.importorskip(extra)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


SHOWN = ("--help", "ls", "prune --help", "plan scores.json --drop 25%")
REFUSED = {  # words that are wrong for any model, and the option or argument that is named first
    "plan demo": "",
    "plan demo --drop 120%": "",
    "prune demo --layers 3-1 -o x": "",
    "prune demo --drop 8 --metric none -o x": "",
    "score demo --plot x.pdf": "x.pdf",
    "score demo --depth-curve --plot none/x.svg": "none/x.svg",
    **{
        f"heal demo -o x {words}": said
        for words, said in (
            ("--data pydoc --method none", "--method"),
            ("--data pydoc --method lora --train-last 0", "--train-last"),
            ("--data pydoc --train-last 1 --layers 3", "--layers"),
            ("--data pydoc --method full --lora-r 4", "--lora-r"),
            ("--data pydoc --learning-rate 0", "--learning-rate"),
            ("--data pydoc --loss mse", "--loss"),
            ("--data pydoc --loss distill", "--teacher"),
            ("--data pydoc --step 1 --drop 4 --metric nothing", "--metric"),
            ("--data pydoc --recipe paper-lora --layers 3 --train-last 2", "--layers"),
            ("--data missing.jsonl", "--data: missing.jsonl"),
            ("--data pydoc --plot curve.doc", "curve.doc"),
            ("--data pydoc -o there", "there"),
            ("--data pydoc --resume -o there", "there"),
            ("", "--data"),
        )
    },
}
ALONE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from shortstack.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv, out, err, code = ["shortstack", *words.split()], io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    heavy = ["torch", "transformers", *(["cyclopts", "pydantic", "shortstack.cli.score"] if words == "--help" else [])]
    imported = [name for name in heavy if name in sys.modules]
    print(json.dumps([words, code, out.getvalue(), err.getvalue(), imported]))
"""


def test_what_needs_no_model_is_shown_or_refused_before_torch_is_imported(tmp_path):
    """In one fresh process, all of them one after the other."""
    (tmp_path / "there").mkdir()
    shortstack.score(tiny("llama"), metrics="reverse").save(tmp_path / "scores.json")
    command = [sys.executable, "-c", ALONE, json.dumps([*SHOWN, *REFUSED])]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    for words, code, out, err, imported in map(json.loads, told.splitlines()):
        assert imported == [], words
        assert code == (2 if words in REFUSED else 0), (words, err)
        said = REFUSED.get(words, "")
        assert out if words in SHOWN else err.startswith(f"Error: {said}\n" if said else "Error: "), (words, err)
    assert len(told.splitlines()) == len(SHOWN) + len(REFUSED)
    assert {path.name for path in tmp_path.iterdir()} == {"there", "scores.json"}
