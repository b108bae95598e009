"""A step: one call of a public verb, known by what it computes and on what. `step_types` holds the types.

`perform` runs a step in a worker, on this machine or another. It writes to Job.output and nowhere else; whoever asked
for it puts that in its place. A failure is a result, too: its traceback.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import versions
from shortstack.data import mixture
from shortstack.errors import DiskFullError, InputError
from shortstack.evaluation import Tasks
from shortstack.healing import TrainingData
from shortstack.machine.cache import OURS, content_key
from shortstack.machine.device import Compute
from shortstack.machine.files import digest, disk_full, save_json
from shortstack.machine.formats import option_words, show_share
from shortstack.machine.memory import forget_peak_rss, peak_rss
from shortstack.machine.options import options_of
from shortstack.machine.progress import Progress, progress_bar
from shortstack.study.progress import keeping

if TYPE_CHECKING:
    from shortstack.study.trial import Trial

Places = Mapping[str, str]  # what a step reads -> its path or the model's name
CODE = 2  # raised where a step computes something else than it did: since 2 answers are tokenised behind their prompts
SHARED = {name for options in (Tasks, TrainingData) for name, _, known in options_of(options) if known.shares}


@dataclass(frozen=True)
class Contents:
    """The identity of a checkpoint: digests of its weights, its shapes, and the files beside them.

    layers: None where nobody knows yet.
    """

    weights: str
    shape: str
    layers: int | None = None
    beside: str = ""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Contents:
        shapes = [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in checkpoint.tensors.values()]
        shape = digest({"config": checkpoint.config, "tensors": sorted(shapes)})
        return cls(checkpoint.weights_sha256, shape, checkpoint.anatomy.layers, checkpoint.beside)

    @property
    def identity(self) -> dict[str, str]:
        """As the input of a step."""
        return {"weights": self.weights, "shape": self.shape, "beside": self.beside}

    @property
    def result(self) -> dict[str, str]:
        """As part of the result of a step that writes a checkpoint."""
        return {"weights_sha256": self.weights, "shape_sha256": self.shape, "beside_sha256": self.beside}


@dataclass(frozen=True)
class Known:
    """The identities of steps' inputs, models by their contents and texts by their digests; and the dtype of steps."""

    models: Mapping[str, Contents]
    texts: Mapping[str, str]
    dtype: str

    def model(self, trial: Trial) -> dict[str, str]:
        return self.models[trial.model].identity


@dataclass(frozen=True)
class Step(ABC):
    """One call of a public verb; a kind of step is a subclass.

    reads: where its inputs are, a model's name or the key of a step; no part of its key.
    """

    kind: ClassVar[str]
    writes_weights: ClassVar[bool] = False
    alone: ClassVar[bool] = False  # it measures time: no other step runs meanwhile

    arguments: Mapping[str, Any]
    inputs: Mapping[str, Any]
    reads: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        return content_key(self.kind, code=CODE, arguments=self.arguments, inputs=self.inputs)

    @abstractmethod
    def run(self, job: Job, progress: Progress) -> dict[str, Any]:
        """Call the verb; job.output is written, the result is JSON-able data."""

    @abstractmethod
    def command_line(self, places: Places) -> list[str]:
        """Return the words of the command that does the same; the output is left to be named."""


@dataclass(frozen=True)
class Job:
    """A step with everything a worker needs. places: where each input is; given: results of earlier steps, by name.

    The step's arguments have the values of names of the environment, so that `key` is not the step's own any more.
    progress: the file that tells how far it is.
    """

    key: str
    step: Step
    places: Places
    given: Mapping[str, Any]
    output: Path
    log: Path
    progress: Path
    device: str = "auto"

    def compute(self, arguments: Mapping[str, Any]) -> Compute:
        """Return where the step computes, in the dtype and with the seed of these arguments."""
        return Compute(seed=arguments.get("seed", 0), device=self.device, dtype=arguments.get("dtype", "auto"))

    def open(self, name: str, progress: Progress) -> Checkpoint:
        return open_model(self.places[name], progress=progress)

    def saved(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Return the result, written into the step's folder too."""
        self.output.mkdir(parents=True)
        save_json(self.output / name, result)
        return result


def perform(job: Job) -> dict[str, Any]:
    """Run a step: `result` or `error`, and what it took; `full` is the error itself where the disk has no room."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.output.with_name(f"{job.output.name}.lock"))  # a worker may outlive for a moment who started it
    OURS.clear()  # a worker reads nothing again that an earlier step has kept
    with lock, job.log.open("a", encoding="utf-8") as log:
        forget_peak_rss()  # a worker runs many steps: the peak is to be this one's
        started = time.perf_counter()
        with redirect_stdout(log), redirect_stderr(log), progress_bar() as progress:
            try:
                shutil.rmtree(job.output, ignore_errors=True)  # of one that was killed before it was put in its place
                ended: dict[str, Any] = {"result": job.step.run(job, keeping(job.progress, progress))}
            except Exception as error:  # noqa: BLE001  recorded, shown, and it fails the trials that need this step
                ended = {"error": traceback.format_exc()}
                full = disk_full(error) if isinstance(error, OSError) else error
                ended |= {"full": full} if isinstance(full, DiskFullError) else {}
        job.progress.unlink(missing_ok=True)
        with suppress(PermissionError):  # Windows keeps files that are open
            Path(lock.lock_file).unlink(missing_ok=True)
        log.flush()
        return {
            **ended,
            "seconds": round(time.perf_counter() - started, 3),
            "host": socket.gethostname(),
            "versions": versions(),
            "peak_rss_bytes": peak_rss(),
        }


def open_model(name: str, **options: Any) -> Checkpoint:
    """Return a checkpoint by a study's word for it: org/name@revision is a hub model at a branch, tag or commit."""
    model, revision = _with_revision(name)
    return Checkpoint.open(model, revision=revision, **options)


def _with_revision(name: str) -> tuple[str, str | None]:
    """Split a study's word for a model into its name and the revision it asks for; a path that is there asks for none."""
    model, _, revision = (name, "", "") if os.path.exists(name) else name.partition("@")
    return model, revision or None


def check_text(source: str) -> None:
    """Refuse a text that a step could not read: several with commas, files with all their records; the hub is not asked."""
    for weighted in mixture.check_sources(str(expanded(source))):
        weighted.read()


def text_digest(source: str) -> str:
    """Digest of a text as a study's file names it, or of a folder of files."""
    return mixture.text_digest(str(expanded(source)))


def expanded(value: Any) -> Any:
    """Return the same data with $NAME and ${NAME} in its strings replaced by the environment's."""
    if isinstance(value, Mapping):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [expanded(item) for item in value]
    if not isinstance(value, str):
        return value
    text = os.path.expandvars(value)
    unset = re.search(r"\$\{?([A-Za-z_]\w*)", text)
    if unset:
        none, fix = f"no {unset[1]} in the environment", f"export {unset[1]}=..."
        raise InputError(none, expected="names that the environment has", fix=fix, where=value)
    return text


def model_words(name: str) -> list[str]:
    """Return a model as the command line names it: a hub model's revision is an option.

    >>> model_words("org/name@v2"), model_words("demo")
    (['org/name', '--revision', 'v2'], ['demo'])
    """
    model, revision = _with_revision(name)
    return [model, *option_words({"revision": revision})]


def changed_words(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return those of the values that are options and not at their default, as the command line spells them.

    >>> changed_words({"metric": "bi", "drop": "25%", "step": None}, {"metric": None, "drop": "25%", "step": None})
    ['--metric', 'bi']
    >>> changed_words({"limit": 1.0, "learning_rate": 1.0}, {"limit": None, "learning_rate": None})
    ['--limit', '100%', '--learning-rate', '1.0']
    """
    changed = {name: values[name] for name in defaults if name in values and values[name] != defaults[name]}
    shares = {name: show_share(value) for name, value in changed.items() if name in SHARED and isinstance(value, float)}
    return option_words({**changed, **shares})
