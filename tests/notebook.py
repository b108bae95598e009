"""Run the cells of docs/tour.ipynb one after the other, and write what each shows beside it, as Jupyter does.

`make notebook` does so on the real model; tests/test_notebook.py runs the same cells on a tiny one.
"""

from __future__ import annotations

import ast
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
INSTALLS = "%pip"  # begins a cell that is not run here


def cells(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells that hold code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def executed(code: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Return what each cell shows: what it prints, then the value of its last expression."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code, start=1):
        source = "".join(cell["source"])
        yield [] if source.startswith(INSTALLS) else list(_shown(source, names, number))


def _shown(source: str, names: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    tree, printed = ast.parse(source), io.StringIO()
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        exec(compile(tree, NOTEBOOK.name, "exec"), names)  # noqa: S102  our own notebook
        value = eval(ast.unparse(last), names) if last else None  # noqa: S307
    if printed.getvalue():
        yield {"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(keepends=True)}
    if value is not None:
        kinds = (("text/html", "_repr_html_"), ("image/svg+xml", "_repr_svg_"))
        shown = {kind: getattr(value, name)().splitlines(keepends=True) for kind, name in kinds if hasattr(value, name)}
        data = {**shown, "text/plain": repr(value).splitlines(keepends=True)}
        yield {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}


def main() -> None:
    notebook, here = json.loads(NOTEBOOK.read_text(encoding="utf-8")), Path.cwd()
    code = cells(notebook)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number, (cell, outputs) in enumerate(zip(code, executed(code), strict=True), start=1):
            cell["outputs"], cell["execution_count"] = outputs, number
            print("".join(cell["source"]).splitlines()[0])
        os.chdir(here)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
