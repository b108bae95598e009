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


def test_public_names_are_importable_and_documented():
    assert sorted(shortstack.__all__) == sorted(set(shortstack.__all__))
    assert all(getattr(shortstack, name).__doc__ for name in shortstack.__all__ if name != "METRICS")
    with pytest.raises(AttributeError, match="banana"):
        shortstack.banana  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    if (extra := NEEDED.get(name)) is not None:
        pytest.importorskip(extra)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


SHOWN = ("--help", "list", "prune --help", "plan scores.json --drop 25%")
REFUSED = [  # whatever the model is
    "plan demo --drop 120%",
    "prune demo --drop 8 --metric none -o x",
    "score demo --plot x.pdf",
]
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


def test_what_needs_no_model_needs_no_torch(tmp_path):
    """In one fresh process, all of them one after the other."""
    (tmp_path / "there").mkdir()
    shortstack.score(tiny("llama"), metrics="reverse").save(tmp_path / "scores.json")
    command = [sys.executable, "-c", ALONE, json.dumps([*SHOWN, *REFUSED])]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    for words, code, out, err, imported in map(json.loads, printed.splitlines()):
        assert imported == [], words
        assert code == (2 if words in REFUSED else 0), (words, err)
        assert out if words in SHOWN else err.startswith("Error: "), words
    assert len(printed.splitlines()) == len(SHOWN) + len(REFUSED)
    assert {path.name for path in tmp_path.iterdir()} == {"there", "scores.json"}
