"""Each room has one door: what code outside a room imports, the door names; and nothing private crosses a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "shortstack"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
FILES = sorted(path for path in PACKAGE.glob("*/**/*.py") if path.name != "__init__.py")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "shortstack":
            for alias in node.names:
                yield node.module or "", alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("shortstack."):
                    yield alias.name, ""


def door(room: str) -> tuple[set[str], set[str]]:
    """The names and the files that a room's door names."""
    names, files = set(), set()
    for node in ast.parse((PACKAGE / room / "__init__.pyi").read_text(encoding="utf-8")).body:
        assert isinstance(node, ast.ImportFrom), f"{room}: a door imports, and does nothing else"
        (names if node.module else files).update(alias.name for alias in node.names)
    return names, files


def test_the_root_holds_the_rooms_and_the_errors():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ROOMS)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "cli"])
def test_a_door_says_what_lives_there_and_names_only_what_is_there(room):
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    assert len((ast.get_docstring(tree) or "").splitlines()) >= 3
    names, files = door(room)
    module = __import__(f"shortstack.{room}", fromlist=["_"])
    assert all((PACKAGE / room / f"{file}.py").exists() or (PACKAGE / room / file).is_dir() for file in files)
    assert names | files == set(module.__all__)
    # importing a file puts the module in the place of a name that is spelled like it, for everybody who looks later
    assert names.isdisjoint(path.stem for path in (PACKAGE / room).iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_reaches_other_rooms_through_their_doors(path):
    room = path.relative_to(PACKAGE).parts[0]
    for module, name in imports(path):
        assert not name.startswith("_"), f"{module}.{name} is private"
        parts = module.split(".")[1:]
        if not parts or parts[0] in {room, "errors"}:
            continue
        names, files = door(parts[0])
        if len(parts) == 1:
            assert name in names | files, f"{parts[0]}'s door does not name {name}"
        else:
            assert parts[1] in files, f"{parts[0]}'s door does not name the file {parts[1]}"


def test_cyclopts_is_of_the_command_line_alone():
    users = [path for path in FILES if "cyclopts import" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(PACKAGE).parts[0] for path in users} == {"cli"}


def test_options_are_spelled_with_dashes_on_the_command_line_alone():
    wrong = []
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] == "cli":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            plain = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
            text = str(node.value) if plain else ""
            if any(word.startswith("--") and word[2:3].isalpha() for word in text.split()):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {text[:60]!r}")
    allowed = ("pip install", "ray start", "no-deps", "outtype", "outfile")  # of other programs
    assert [each for each in wrong if not any(word in each for word in allowed)] == []
