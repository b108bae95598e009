"""heal(): train part of a pruned checkpoint and write it as a new one. One file per method; this one finds and runs it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.errors import CheckpointError, DataError, InputError
from shortstack.examples import Example, read_examples
from shortstack.healing.partial import Partial, Trained
from shortstack.methods import METHODS
from shortstack.progress import Progress, silent
from shortstack.pruning import provenance
from shortstack.scoring import peak_rss
from shortstack.training import History, Schedule
from shortstack.walk import pick_device
from shortstack.writing import CheckpointWriter, layout

HELD_OUT_SHARE = 0.05
__all__ = ["METHODS", "Healing", "Partial", "Schedule", "heal"]


@dataclass(frozen=True)
class Healing:
    """What healing did; the healed checkpoint is at `output`."""

    output: Path
    method: str
    trainable_parameters: int
    history: History
    seconds: float
    peak_rss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        losses, held_out = self.history.losses, self.history.held_out
        return {
            "output": str(self.output),
            "method": self.method,
            "trainable_parameters": self.trainable_parameters,
            "loss": {
                "first": losses[0][1] if losses else None,
                "last": losses[-1][1] if losses else None,
                "held_out": held_out[-1][1],
                "held_out_before": held_out[0][1],
            },
            "steps": self.history.steps,
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def heal(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    data: str,
    method: Partial | None = None,
    schedule: Schedule | None = None,
    max_length: int = 256,
    max_samples: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Healing:
    """Train `method`'s part of the checkpoint on `data` (text or instructions) and write the result to the new `out`.

    5 % of the samples are held out and never trained on; their loss before and after is reported.

    Raises:
        DataError: the data cannot be read.
        CheckpointError: the weights are quantised, so that training them would change their format.
        OutputError: `out` exists, is nested in the input, or does not fit the disk.
        TrainingError: the loss became NaN or infinite; nothing is written.
    """
    started = time.perf_counter()
    method, schedule = method or Partial(), schedule or Schedule()
    _check_amounts(max_length, max_samples)
    _check_trainable(checkpoint)
    nbytes = checkpoint.weight_bytes + method.added_bytes(checkpoint)
    writer = CheckpointWriter(out, source=checkpoint.directory, nbytes=nbytes)
    examples = read_examples(data, checkpoint.tokenizer(), max_length=max_length, seed=schedule.seed)[:max_samples]
    held_out, training = _split(examples, data)
    trained, history = method.run(
        checkpoint, training, held_out, schedule, device=pick_device(device), progress=progress
    )
    seconds = round(time.perf_counter() - started, 3)
    healing = {
        "method": method.to_dict(),
        "data": data,
        "samples": len(examples),
        "sha256": hashlib.sha256(repr([(example.ids, example.learn) for example in examples]).encode()).hexdigest(),
        "max_length": max_length,
        "schedule": schedule.to_dict(),
        "losses": history.losses,
        "held_out": history.held_out,
    }
    _write(writer, checkpoint, trained, {**provenance(checkpoint, "heal", seconds), "healing": healing}, progress)
    return Healing(writer.out, method.name, trained.parameters, history, seconds, peak_rss())


def _split(examples: Sequence[Example], data: str) -> tuple[Sequence[Example], Sequence[Example]]:
    """The samples held out, and those to train on."""
    if len(examples) < 2:
        raise DataError(
            data, expected="at least two samples, one of them held out", found=str(len(examples)), fix="give more data"
        )
    kept_back = max(1, round(len(examples) * HELD_OUT_SHARE))
    return examples[:kept_back], examples[kept_back:]


def _write(
    writer: CheckpointWriter,
    checkpoint: Checkpoint,
    trained: Trained,
    record: Mapping[str, Any],
    progress: Progress,
) -> None:
    """The checkpoint with what was trained in place of what it was before, in the same shards."""
    tensors = [trained.tensors.get(name, tensor) for name, tensor in checkpoint.tensors.items()]
    tensors += [tensor for name, tensor in trained.tensors.items() if name not in checkpoint.tensors]
    origin = {name: tensor.file.name for name, tensor in checkpoint.tensors.items()}
    layer_map = checkpoint.record.get("layer_map") or _identity(checkpoint)
    with writer:
        writer.json("config.json", {**checkpoint.config, **trained.config})
        for path in checkpoint.side_files():
            writer.copy(path)
        writer.tensors(layout(tensors, origin), progress=progress)
        writer.commit({**record, "plan": None, "layer_map": layer_map})


def _identity(checkpoint: Checkpoint) -> dict[str, int]:
    return {str(layer): layer for layer in range(checkpoint.anatomy.layers)}


def _check_amounts(max_length: int, max_samples: int | None) -> None:
    for name, value, least in (("--max-length", max_length, 4), ("--max-samples", max_samples, 2)):
        if value is not None and value < least:
            raise InputError(name, expected=f"at least {least}", found=str(value), fix="ask for more")


def _check_trainable(checkpoint: Checkpoint) -> None:
    if checkpoint.config.get("quantization_config"):
        raise CheckpointError(
            checkpoint.directory,
            expected="16- or 32-bit weights to train",
            found="a quantised checkpoint",
            fix="heal the unquantised model, then quantise",
        )
