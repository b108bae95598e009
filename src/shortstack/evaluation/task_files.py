"""Task files for standard tasks: the harness's own, included, with nothing but the source of the data swapped.

A folder that holds only these is read at once, where reading all that the harness ships takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shortstack.data.sources import read_lines
from shortstack.errors import DataError
from shortstack.evaluation.suites import TASKS, StandardTask

FORMATS = {".jsonl": "json", ".parquet": "parquet"}
SPLITS = {"training_split": "train", "validation_split": "validation", "test_split": "test", "fewshot_split": "dev"}


def write_overlays(names: Sequence[str], data: Path | None, stock: Path, folder: Path) -> None:
    """Write task files for the named standard tasks into `folder`.

    data: the folder of their documents, None for the hub. stock: the folder of the harness's own task files.
    """
    for name in names:
        task, members = TASKS[name], []
        for path in _stock_files(task, stock):
            part = _part(task, path)
            members.append(f"{name}_{part}" if part else name)
            source = _source(task, part, data) if data else {}
            _write(folder / f"{members[-1]}.yaml", {"include": str(path), "task": members[-1], "tag": None, **source})
        if task.group:
            _write(folder / f"_{name}.yaml", {"include": str(stock / task.group), "task": members})


def _stock_files(task: StandardTask, stock: Path) -> list[Path]:
    """Find the task's own file, or those of its parts; files that start with an underscore hold what others include."""
    folder, _, pattern = task.stock.rpartition("/")
    return sorted((stock / folder).glob(pattern.replace("{part}", "[!_]*")))


def _part(task: StandardTask, path: Path) -> str:
    before, placeholder, after = task.stock.rpartition("/")[2].partition("{part}")
    return path.name.removeprefix(before).removesuffix(after) if placeholder else ""


def _source(task: StandardTask, part: str, data: Path) -> dict[str, Any]:
    """Return the fields that swap the data; a split without a file is set to null, or a task that names it would fail."""
    stems = {split: stem.format(part=part) for split, stem in task.files.items()}
    present = {split: file for split, stem in stems.items() if (file := _file(data, stem))}
    for split in sorted({task.evaluated, *task.needs} - present.keys()):
        names = f"{stems[split]}.jsonl and {stems[split]}.parquet"
        raise DataError(f"{task.name}: {names} are not in {data}; docs/evaluate.md has the layout", option="data_dir")
    for split, file in present.items():
        if file.suffix == ".jsonl":
            _check_lines(task, file, task.columns.split() if split == task.evaluated else ())
    kinds = {FORMATS[file.suffix] for file in present.values()}
    if len(kinds) > 1:
        raise DataError(f"{task.name} has .jsonl and .parquet files; keep one format", option="data_dir")
    absent = [key for key, split in SPLITS.items() if split not in present]
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in present.items()}},
        **{key: None for key in absent if key != "fewshot_split" or "dev" in task.files},
    }


def _check_lines(task: StandardTask, path: Path, columns: Sequence[str]) -> None:
    """Refuse a line that is not JSON, and documents without a column; the harness says only that data are missing."""
    rows = [row for _, row in read_lines(path)]
    missing = [column for column in columns if not (isinstance(rows[0], dict) and column in rows[0])]
    if missing:
        wanted = f"documents of {task.name} have {', '.join(columns)}, as on the hub"
        raise DataError(f"{path} has no {', '.join(missing)}; {wanted}", option="data_dir")


def _file(data: Path, stem: str) -> Path | None:
    """Find the file of that name, in a format that is read; JSONL first."""
    candidates = (data.resolve() / f"{stem}{suffix}" for suffix in FORMATS)
    return next((file for file in candidates if file.is_file()), None)


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True), encoding="utf-8")
