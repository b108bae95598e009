"""The embedded example: SmolLM2-135M-Instruct loses a quarter of its layers, is repaired and heals, and is measured."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from shortstack.checkpoint import Checkpoint
from shortstack.data import CalibrationText, Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import SkippedLayers
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import OutputError, VerificationError, parameter
from shortstack.evaluation import Perplexity
from shortstack.evaluation.perplexity import measure
from shortstack.healing import HealingTask, Partial, Schedule, heal
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.files import plain, save_json
from shortstack.machine.memory import peak_rss
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Choice, Plan, choose, plan
from shortstack.profiling.profiler import answer
from shortstack.profiling.speed import Load, Speed, speeds
from shortstack.pruning import prune, verify
from shortstack.pruning.pruner import check_fits
from shortstack.repairing import repair

PROMPT = "What is the capital of France, and what is the city known for?"
DROP = "25%"
REPAIR_SAMPLES = 64
SCHEDULE = Schedule(epochs=2, lr=1e-3, warmup_steps=5)  # some 35 steps in all, so a rate far above the paper's 1e-5


@dataclass(frozen=True)
class DemoRow:
    """One model of the table."""

    name: str
    layers: int
    parameters: int
    bytes: int
    perplexity: Perplexity
    speed: Speed
    answer: str


@dataclass(frozen=True)
class Demo:
    """The result of the demo: the four models, and the perplexity of the paper's tail cut, which was not written."""

    output: Path
    rows: tuple[DemoRow, ...]
    chosen: Plan
    tail: Plan
    tail_perplexity: Perplexity
    verified: bool
    seconds: float
    peak_rss_bytes: int
    prompt: ClassVar[str] = PROMPT

    def to_dict(self) -> dict[str, Any]:
        return {**plain(self), "chosen": self.chosen.to_dict(), "tail": self.tail.to_dict()}


def run(output: str | Path = "demo-out", *, seed: int = 0, progress: Progress = silent) -> Demo:
    """Score, plan, prune, verify, repair, heal and measure; leaves pruned, repaired, healed and demo.json in `output`.

    Raises:
        OutputError: `output` exists.
        CheckpointError: the demo model is not installed and the hub cannot be reached.
    """
    started = time.perf_counter()
    output = Path(output)
    if output.exists():
        raise _exists(output)
    source = Checkpoint.open("demo", progress=progress)
    check_fits(output / "pruned", source, plan(source.anatomy.layers, metric="reverse", drop=1), copies=3)
    made = _make(output)
    try:
        return _run(source, output, seed, started, progress)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        with suppress(OSError):  # somebody may use them by now
            for parent in made:
                parent.rmdir()
        raise


def _exists(output: Path) -> OutputError:
    return OutputError(
        output,
        expected="an output that does not exist yet",
        found="it exists",
        fix=f"name another {parameter('output')}, or remove it",
    )


def _make(output: Path) -> list[Path]:
    """Make the directory, which is ours from then on; the parents that had to be made for it, innermost first."""
    made = [parent for parent in output.absolute().parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        output.mkdir()
    except FileExistsError as error:
        raise _exists(output) from error
    return made


def _run(source: Checkpoint, output: Path, seed: int, started: float, progress: Progress) -> Demo:
    by_loss = choose(
        source, Choice("ppl", DROP), CalibrationText("pydoc"), compute=Compute(seed=seed), progress=progress
    )
    chosen, tail = by_loss.plan, plan(source.anatomy.layers, metric="reverse", drop=DROP)
    pruned = prune(source, by_loss, output / "pruned", progress=progress)
    verified = verify(pruned, against=source, progress=progress)
    if not verified.ok:
        raise VerificationError(
            output / "pruned",
            expected="a checkpoint that computes what the source does without those layers",
            found=str(verified.to_dict()["checks"]),
            fix="open an issue with this message",
        )
    tokens = Tokens.read("pydoc", source.tokenizer(), samples=REPAIR_SAMPLES, seed=seed)
    fit = repair(source, frozenset(chosen.removed), tokens, progress=progress)
    repaired = prune(source, chosen, output / "repaired", repair=fit, progress=progress)
    task = HealingTask("pydoc", Partial(last=3), schedule=replace(SCHEDULE, seed=seed))
    heal(repaired, output / "healed", task, progress=progress)
    healed = Checkpoint.open(output / "healed")
    models = {"unpruned": source, "pruned": pruned, "repaired": repaired, "healed": healed}
    rows, tail_perplexity = _measure(models, frozenset(tail.removed), progress)
    result = Demo(
        output, rows, chosen, tail, tail_perplexity, verified.ok, round(time.perf_counter() - started, 1), peak_rss()
    )
    save_json(output / "demo.json", result.to_dict())
    return result


def _measure(
    checkpoints: Mapping[str, Checkpoint], tail: SkippedLayers, progress: Progress
) -> tuple[tuple[DemoRow, ...], Perplexity]:
    source = checkpoints["unpruned"]
    tokenizer, device = source.tokenizer(), pick_device()
    tokens = Tokens.read("pydoc", tokenizer, samples=None, length=512, held_out=True)
    dtype = arithmetic("auto", source, device)
    decoders = {name: Decoder.load(checkpoint, dtype=dtype, device=device) for name, checkpoint in checkpoints.items()}
    measured_speeds = speeds([decoder.model for decoder in decoders.values()], Load(), progress=progress)
    rows = tuple(
        DemoRow(
            name,
            checkpoint.anatomy.layers,
            checkpoint.parameters,
            sum(path.stat().st_size for path in checkpoint.shards),
            measure(decoders[name], tokens, progress=progress),
            speed,
            answer(decoders[name].model, tokenizer, PROMPT),
        )
        for (name, checkpoint), speed in zip(checkpoints.items(), measured_speeds, strict=True)
    )
    return rows, measure(decoders["unpruned"], tokens, route=tail, progress=progress)
