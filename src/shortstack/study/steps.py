"""The step types of a study: each one is a function that calls a public verb and returns JSON-able data.

`perform` runs a step in a worker, on this machine or another. It writes to Job.output and nowhere else. To add a type,
write a function, list it in STEPS, and give it a place in a trial's path in `graph`.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from shortstack import evaluation, healing, planning, profiling, pruning, scoring
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers, versions
from shortstack.machine.cache import OURS, content_key
from shortstack.machine.device import Compute
from shortstack.machine.files import save_json
from shortstack.machine.memory import forget_peak_rss, peak_rss
from shortstack.machine.progress import Progress, hush_libraries, say
from shortstack.planning import Plan
from shortstack.scoring import Scores

CODE = 3  # raised when a step computes something else than before
PACE = 5.0  # seconds between two lines of progress in a log
WRITERS = ("prune", "heal", "rounds")  # steps that write a checkpoint


@dataclass(frozen=True)
class Step:
    """One call of a public verb, known by what it computes and on what.

    arguments: its options. inputs: the contents of models and texts. places: where those are, a model's name or the key of a
    step; not part of the key.
    """

    kind: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        return content_key(self.kind, code=CODE, arguments=self.arguments, inputs=self.inputs)

    @property
    def writes_weights(self) -> bool:
        return self.kind in WRITERS

    @property
    def alone(self) -> bool:
        """Whether no other step may run meanwhile: it measures time."""
        return self.kind == "profile"


@dataclass(frozen=True)
class Job:
    """A step with all that a worker needs. places: paths; scores: of an earlier step, if it reads some."""

    key: str
    kind: str
    arguments: Mapping[str, Any]
    places: Mapping[str, str]
    scores: Mapping[str, Any] | None
    output: Path
    log: Path
    device: str = "auto"

    @property
    def compute(self) -> Compute:
        dtype = self.arguments.get("dtype", "auto")
        return Compute(seed=self.arguments.get("seed", 0), device=self.device, dtype=dtype)

    def open(self, progress: Progress) -> Checkpoint:
        return open_model(self.places["model"], progress=progress)


def score(job: Job, progress: Progress) -> dict[str, Any]:
    metrics, window = job.arguments["metrics"], job.arguments["window"]
    how: dict[str, Any] = {"metrics": metrics, "window": window, "compute": job.compute, "progress": progress}
    return scoring.score(job.open(progress), job.arguments["text"], **how).to_dict()


def plan(job: Job, progress: Progress) -> dict[str, Any]:
    checkpoint = job.open(progress)
    scores = Scores.from_dict(job.scores, where="score") if job.scores else None
    how: dict[str, Any] = {"scores": scores, "compute": job.compute, "progress": progress}
    return planning.select(checkpoint, job.arguments["selection"], job.arguments.get("text"), **how).to_dict()


def prune(job: Job, progress: Progress) -> dict[str, Any]:
    checkpoint, text = job.open(progress), job.arguments["repair"]
    plan = Plan(checkpoint.anatomy.layers, tuple(job.arguments["removed"]), "layers").sized(checkpoint.sizes)
    how: dict[str, Any] = {"repair": text and text.of_all(text.samples), "compute": job.compute, "progress": progress}
    pruned = pruning.prune(checkpoint, plan, job.output, **how)
    return {**plan.to_dict(), "repair": pruned.record["repair"], "identity": pruned.identity}


def heal(job: Job, progress: Progress) -> dict[str, Any]:
    config, base = _healing(job)
    healed = healing.heal(job.open(progress), job.output, config, base=base, progress=progress)
    return {**healed.to_dict(), "output": f"artefacts/{job.key}", "identity": Checkpoint.open(job.output).identity}


def rounds(job: Job, progress: Progress) -> dict[str, Any]:
    """Remove some layers and heal, again and again."""
    checkpoint, (config, _), schedule = job.open(progress), _healing(job), job.arguments["rounds"]
    how: dict[str, Any] = {**schedule, "compute": job.compute, "progress": progress}
    result = healing.prune_iteratively(checkpoint, job.output, config, **how)
    healed = Checkpoint.open(job.output)
    removed = tuple(sorted(skipped_layers(healed, checkpoint)))
    plan = (
        Plan(checkpoint.anatomy.layers, removed, f"{schedule['metric']}, in rounds").sized(checkpoint.sizes).to_dict()
    )
    return {**result.to_dict(), "output": f"artefacts/{job.key}", "plan": plan, "identity": healed.identity}


def _healing(job: Job) -> tuple[healing.HealingConfig, Checkpoint | None]:
    """Return how to heal, and the base model if it is needed."""
    base = job.places.get("base")
    return replace(job.arguments["options"].config, device=job.device), open_model(base) if base else None


def evaluate(job: Job, progress: Progress) -> dict[str, Any]:
    config = job.arguments["config"]
    return evaluation.evaluate(job.open(progress), config, compute=job.compute, progress=progress).to_dict()


def profile(job: Job, progress: Progress) -> dict[str, Any]:
    timing = job.arguments["timing"]
    return profiling.profile(job.open(progress), timing=timing, compute=job.compute, progress=progress).to_dict()


STEPS: Mapping[str, Callable[[Job, Progress], dict[str, Any]]] = {
    function.__name__: function for function in (score, plan, prune, heal, rounds, evaluate, profile)
}


def perform(job: Job) -> dict[str, Any]:
    """Run a step: return its result, and what it took. Its log has what it printed, and the traceback of an error."""
    for path in (job.log, job.output):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.output.with_name(f"{job.output.name}.lock"))  # a worker may outlive its study for a moment
    OURS.clear()  # a worker does not read again what an earlier step cached
    with lock, job.log.open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        forget_peak_rss()  # the peak is to be of this step alone
        hush_libraries()
        started = time.perf_counter()
        shutil.rmtree(job.output, ignore_errors=True)  # of a step that was killed
        try:
            result = STEPS[job.kind](job, _in_lines())
            if job.kind not in WRITERS:
                job.output.mkdir()
                save_json(job.output / f"{job.kind}.json", result)
        finally:
            if sys.exc_info()[0]:
                traceback.print_exc()
            with suppress(PermissionError):  # Windows keeps files that are open
                Path(lock.lock_file).unlink(missing_ok=True)
        return {
            "result": result,
            "seconds": round(time.perf_counter() - started, 3),
            "host": socket.gethostname(),
            "versions": versions(),
            "peak_rss_bytes": peak_rss(),
        }


def _in_lines() -> Progress:
    """Return a progress that is written in lines, at most one in PACE seconds."""
    written = -math.inf

    def report(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        nonlocal written
        if time.monotonic() - written >= PACE:
            written = time.monotonic()
            say(f"{stage}: {done / max(total, 1):.0%}{', ' if note else ''}{note}")

    return report


def open_model(name: str, **options: Any) -> Checkpoint:
    """Open a model by its name in a study: org/name@revision is a hub model at a branch, tag or commit."""
    model, _, revision = (name, "", "") if os.path.exists(name) else name.partition("@")
    return Checkpoint.open(model, revision=revision or None, **options)
