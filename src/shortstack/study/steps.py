"""What each kind of step does: a call of the public functions, its result as JSON-able data, its folder whole or absent.

`perform` runs in a worker, on this machine or another. It writes under Task.output and nowhere else; whoever asked for
it puts that in its place. A failure is a result, too: its traceback.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers, versions
from shortstack.data import Tokens
from shortstack.data.sources import parse_samples
from shortstack.data.splits import HELD_OUT
from shortstack.evaluation import EvaluationText, GenerationChecks, Tasks, evaluate
from shortstack.healing import HealingTask, Turns, heal, heal_in_turns
from shortstack.healing.options import task_of
from shortstack.machine.cache import cache_directory
from shortstack.machine.device import Compute
from shortstack.machine.files import digest, save_json
from shortstack.machine.memory import forget_peak_rss, peak_rss
from shortstack.machine.progress import Progress, bars
from shortstack.planning import Choice, Plan, choose
from shortstack.profiling import Timing, profile
from shortstack.pruning import prune
from shortstack.repairing import Repair, repair
from shortstack.runs.artefacts import Remote, local_copies
from shortstack.runs.store import Folder
from shortstack.scoring import Scores, score
from shortstack.study import words
from shortstack.study.graph import Contents, Step


@dataclass(frozen=True)
class Task:
    """A step with everything a worker needs. places: where each input is; given: results of earlier steps, by name.

    url: where the output is copied to, by a worker that sees no folder of the study.
    """

    key: str
    kind: str
    arguments: Mapping[str, Any]
    places: Mapping[str, str]
    given: Mapping[str, Any]
    output: Path
    log: Path
    device: str = "auto"
    url: str | None = None

    def compute(self, arguments: Mapping[str, Any]) -> Compute:
        """Where this step computes, in the dtype and with the seed of its arguments."""
        return Compute(seed=arguments.get("seed", 0), device=self.device, dtype=arguments["dtype"])

    def here(self) -> Task:
        """With output and log on this machine, where the study's folder may not be seen."""
        if self.url is None:
            return self
        scratch = Folder(cache_directory("steps"))
        return replace(self, output=scratch.partial(self.key), log=scratch.log(self.key))

    def open(self, name: str, progress: Progress) -> Checkpoint:
        return open_model(self.places[name], progress=progress)


def open_model(name: str, **options: Any) -> Checkpoint:
    """A checkpoint by a study's word for it: org/name@revision is a hub model at a branch, tag or commit."""
    model, _, revision = (name, "", "") if os.path.exists(name) else name.partition("@")
    return Checkpoint.open(model, revision=revision or None, **options)


def contents(checkpoint: Checkpoint) -> Contents:
    """What a checkpoint is known by; reads its weights."""
    shapes = [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in checkpoint.tensors.values()]
    shape = digest({"config": checkpoint.config, "tensors": sorted(shapes)})
    return Contents(checkpoint.weights_sha256, shape, checkpoint.anatomy.layers)


def command(step: Step, places: words.Places) -> str:
    """One line that does what a step does; the output is left to be named."""
    return " ".join(["shortstack", *(quoted(str(word)) for word in KINDS[step.kind].words(step.arguments, places))])


def quoted(word: str) -> str:
    """A word for a shell; names of the environment in it stand for their values, as in a study's file.

    >>> quoted("$DATA/my text.jsonl"), quoted("my text"), quoted("plain")
    ('"$DATA/my text.jsonl"', "'my text'", 'plain')
    """
    if "$" not in word:
        return shlex.quote(word)
    return '"' + re.sub(r'[\\"`]|\$(?![A-Za-z_]|\{[A-Za-z_]\w*\})', lambda found: f"\\{found[0]}", word) + '"'


def perform(asked: Task) -> dict[str, Any]:
    """Run a step: `result` or `error`, and what it took; with a URL also `log`, what it said."""
    task = asked.here()
    task.log.parent.mkdir(parents=True, exist_ok=True)
    task.output.parent.mkdir(parents=True, exist_ok=True)
    alone = FileLock(
        task.output.with_name(f"{task.output.name}.lock")
    )  # a worker may outlive who started it for a moment
    with alone, task.log.open("a", encoding="utf-8") as log:
        forget_peak_rss()  # a worker runs many steps: the peak is to be this one's
        started = time.perf_counter()
        with redirect_stdout(log), redirect_stderr(log), bars() as progress:
            try:
                shutil.rmtree(task.output, ignore_errors=True)  # of one that was killed before it was put in its place
                found: dict[str, Any] = {"result": _done(task, progress)}
            except Exception:  # noqa: BLE001  recorded, shown, and it fails the trials that need this step
                found = {"error": traceback.format_exc()}
        log.flush()
        return {
            **found,
            **(_sent(task.log) if task.url else {}),
            "seconds": round(time.perf_counter() - started, 3),
            "host": socket.gethostname(),
            "versions": versions(),
            "peak_rss_bytes": peak_rss(),
        }


def _done(task: Task, progress: Progress) -> dict[str, Any]:
    """A step's result, its folder written."""
    with local_copies(task.places, task.output.with_name(f"{task.key}.inputs")) as places:
        result = KINDS[task.kind].do(replace(task, places=places), progress)
    if task.url:
        Remote(task.url).put(task.key, task.output)
        shutil.rmtree(task.output)
    return result


def _sent(log: Path) -> dict[str, str]:
    """What a step said, to be kept where the study is."""
    told = log.read_text(encoding="utf-8")
    log.unlink()
    return {"log": told}


def _score(task: Task, progress: Progress) -> dict[str, Any]:
    checkpoint, arguments = task.open("model", progress), task.arguments
    found = score(
        checkpoint,
        _tokens(checkpoint, arguments),
        metrics=arguments["metrics"],
        window=arguments["window"],
        compute=task.compute(arguments),
        progress=progress,
    )
    return _saved(task, "scores.json", found.to_dict())


def _tokens(checkpoint: Checkpoint, looking: Mapping[str, Any]) -> Tokens | None:
    if looking["text"] is None:
        return None
    return Tokens.read(
        looking["text"],
        checkpoint.tokenizer(),
        samples=parse_samples(looking["samples"]),
        length=looking["length"],
        seed=looking["seed"],
    )


def _plan(task: Task, progress: Progress) -> dict[str, Any]:
    checkpoint, arguments = task.open("model", progress), task.arguments
    if arguments["layers"]:
        choice = Choice(layers=arguments["layers"])
    else:
        names = {name: arguments[name] for name in ("metric", "drop", "block", "step")}
        choice = Choice(**names, search=arguments["metric"] is None)
    source: Scores | Tokens | None
    if "score" in task.given:
        source, seed = Scores.from_dict(task.given["score"], where="score"), 0
    else:
        source, seed = _tokens(checkpoint, arguments), arguments["seed"]
    compute = Compute(seed=seed, device=task.device, dtype=arguments.get("dtype", "auto"))
    chosen = choose(checkpoint, choice, source, compute=compute, progress=progress)
    return _saved(task, "plan.json", chosen.plan.sized(checkpoint.sizes).to_dict())


def _prune(task: Task, progress: Progress) -> dict[str, Any]:
    checkpoint, removed = task.open("model", progress), tuple(task.arguments["removed"])
    chosen = Plan(checkpoint.anatomy.layers, removed, "layers").sized(checkpoint.sizes)
    refitting = task.arguments["repair"]
    repaired = _repair(task, checkpoint, refitting, progress) if refitting else None
    made = prune(checkpoint, chosen, task.output, repair=repaired, progress=progress)
    return {**chosen.to_dict(), "repair": repaired.to_dict() if repaired else None, **_known(made)}


def _repair(task: Task, checkpoint: Checkpoint, refitting: Mapping[str, Any], progress: Progress) -> Repair:
    tokens = Tokens.read(
        refitting["text"],
        checkpoint.tokenizer(),
        samples=refitting["samples"],
        length=refitting["length"],
        seed=refitting["seed"],
        at_least=HELD_OUT,
    )
    removed = frozenset(task.arguments["removed"])
    return repair(checkpoint, removed, tokens, compute=task.compute(refitting), progress=progress)


def _known(checkpoint: Checkpoint) -> dict[str, str]:
    """What a checkpoint that was written is known by."""
    found = contents(checkpoint)
    return {"weights_sha256": found.weights, "shape_sha256": found.shape}


def _heal(task: Task, progress: Progress) -> dict[str, Any]:
    checkpoint, wanted = task.open("checkpoint", progress), _healing(task, progress)
    found = heal(checkpoint, task.output, wanted, resume=True, progress=progress)
    return {**found.to_dict(), "output": f"artefacts/{task.key}", **_known(Checkpoint.open(task.output))}


def _turns(task: Task, progress: Progress) -> dict[str, Any]:
    checkpoint, turning = task.open("model", progress), task.arguments["turns"]
    names = {name: turning[name] for name in ("drop", "step", "metric", "seed")}
    if turning["text"] is not None:
        names |= {"text": turning["text"], "samples": turning["samples"], "length": turning["length"]}
    wanted = _healing(task, progress)
    found = heal_in_turns(checkpoint, task.output, Turns(**names), wanted, resume=True, progress=progress)
    healed = Checkpoint.open(task.output)
    removed = tuple(sorted(skipped_layers(healed, checkpoint)))
    chosen = Plan(checkpoint.anatomy.layers, removed, f"{turning['metric']}, in turns").sized(checkpoint.sizes)
    return {
        **found.to_dict(),
        "output": f"artefacts/{task.key}",
        "plan": chosen.to_dict(),
        **_known(healed),
    }


def _healing(task: Task, progress: Progress) -> HealingTask:
    """How a step heals. A run that was killed goes on from its state, which lies beside the output."""
    teacher = task.open("teacher", progress) if "teacher" in task.places else None
    return task_of(task.arguments, teacher=teacher, compute=Compute(device=task.device))


def _evaluate(task: Task, progress: Progress) -> dict[str, Any]:
    arguments = evaluation_options(task.arguments)
    checkpoint = task.open("checkpoint", progress)
    found = evaluate(checkpoint, **arguments, compute=task.compute(task.arguments), progress=progress)
    return _saved(task, "evaluation.json", found.to_dict())


def evaluation_options(judging: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluate() is given.

    Raises:
        InputError: there is no such task, or no such folder.
    """
    how = {name: judging[name] for name in ("limit", "data_dir", "include", "seed")}
    items = judging["probe_items"]
    return {
        "text": EvaluationText(judging["perplexity"], judging["length"], judging["samples"]),
        "tasks": Tasks(judging["tasks"], **how) if judging["tasks"] else None,
        "generation": GenerationChecks(items > 0, items or GenerationChecks.probe_items, judging["collapse"]),
    }


def _profile(task: Task, progress: Progress) -> dict[str, Any]:
    arguments = task.arguments
    found = profile(
        task.open("checkpoint", progress),
        timing=Timing(arguments["batch_sizes"], arguments["prompt"], arguments["new_tokens"]),
        compute=task.compute(arguments),
        progress=progress,
    )
    return _saved(task, "profile.json", found.to_dict())


def _saved(task: Task, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result, written into the step's folder too."""
    task.output.mkdir(parents=True)
    save_json(task.output / name, result)
    return result


@dataclass(frozen=True)
class Kind:
    """What a kind of step is: the call that it does, and the words of the command that does the same."""

    do: Callable[[Task, Progress], dict[str, Any]]
    words: Callable[[Mapping[str, Any], words.Places], list[Any]]


KINDS: Mapping[str, Kind] = {
    "score": Kind(_score, words.score),
    "plan": Kind(_plan, words.plan),
    "prune": Kind(_prune, words.prune),
    "heal": Kind(_heal, words.heal),
    "turns": Kind(_turns, words.turns),
    "evaluate": Kind(_evaluate, words.evaluate),
    "profile": Kind(_profile, words.profile),
}
