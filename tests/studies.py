"""A tiny study that runs in seconds, a launcher without processes, and the lasting content of a run store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shortstack.runs.records import read
from shortstack.study.workers import Launch
from zoo import speaking

QUICK = (
    "{name: quick, method: partial, train_last: 1, data: $TINY/lines.jsonl, num_train_epochs: 1, "
    "max_length: 32, per_device_train_batch_size: 4}"
)


def study_text(metric: str = "ppl", heal: str = "none", more: str = "") -> str:
    """Return the file of a study of one trial, or of more by lists."""
    return f"""
title: tiny
model: $TINY/model
metric: {metric}
calibration: {{source: $TINY/text.txt, samples: 2, length: 16}}
drop: 2
heal: {heal}
evaluation: {{perplexity: [$TINY/text.txt], seq_length: 16, num_samples: 2}}
{more}"""


BOTH = f"[none, {QUICK}]"  # not healed, and healed
STUDY, SHORT = study_text("[reverse, ppl]", BOTH), study_text()
VOLATILE = {"seconds", "peak_rss_bytes", "tokens_per_s", "model"}  # of a run, not of its results


def make_data(folder: Path) -> Path:
    """$TINY: a model of six small layers, a text, and lines to learn."""
    speaking(folder / "model", num_hidden_layers=6, hidden_size=16, intermediate_size=16, num_key_value_heads=4)
    words = "the walk visits every layer once and in order and the dog lies by the door "
    (folder / "text.txt").write_text(words * 40, encoding="utf-8")
    rows = [f'{{"text": "the walk of {n} and one is in order"}}\n' for n in range(12)]
    (folder / "lines.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


def write_study(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def inline() -> Iterator[Launch]:
    """Run steps in this process, one after the other."""

    def submit(function: Any, argument: Any, _resources: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(argument))
        except Exception as error:  # noqa: BLE001  as an executor does
            future.set_exception(error)
        return future

    yield Launch(1, submit)


def found(runs: Path) -> dict[str, Any]:
    """Return the finished steps and the trials of a run store, without times and places."""
    records = read(runs)
    return {
        "steps": {
            key: (step.kind, step.arguments, step.inputs, lasting(step.result))
            for key, step in records.steps.items()
            if step.state == "done"
        },
        "trials": {
            trial.id: (trial.settings, trial.state, {role: step.key for role, step in trial.steps.items()})
            for trial in records.trials
        },
    }


def lasting(value: Any) -> Any:
    """Return JSON without the keys that differ from run to run."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if key not in VOLATILE}
    return [lasting(item) for item in value] if isinstance(value, list) else value
