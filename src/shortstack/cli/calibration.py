"""The text that layers are judged on, as options, and what is computed on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli.options import TEXT, Compute
from shortstack.errors import InputError
from shortstack.metrics import metrics_named
from shortstack.planning import Plan
from shortstack.scores import Scores
from shortstack.texts import parse_samples

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.cli.choice import Choice
    from shortstack.evaluation import Tasks
    from shortstack.progress import Progress
    from shortstack.repairing import Repair
    from shortstack.sweeping import Sweep
    from shortstack.tokens import Tokens


@dataclass(frozen=True)
class Calibration:
    """The text that metrics look at."""

    text: Annotated[str, typer.Option(help=f"Calibration text: {TEXT}")] = "pydoc"
    samples: Annotated[str, typer.Option(help="Calibration windows: a number drawn by seed, or all in order.")] = "10"
    length: Annotated[int, typer.Option(min=4, help="Tokens per calibration window.")] = 128
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Read weights layer by layer. Default: where the model does not fit in memory.",
            show_default=False,
        ),
    ] = None

    def score(
        self,
        checkpoint: Checkpoint,
        metrics: list[str],
        compute: Compute,
        progress: Progress,
        *,
        window: int | None = None,
    ) -> Scores:
        """Scores of the named metrics; the text is read only when one of them needs it."""
        from shortstack.scoring import score

        self._count()  # a wrong one is said even where no text is read
        metrics = [name.strip() for name in metrics]
        needs_text = not {metric.feed for metric in metrics_named(metrics)} <= {"layers", "weights"}
        return score(
            checkpoint,
            self._tokens(checkpoint, compute.seed) if needs_text else None,
            metrics=metrics,
            window=window,
            dtype=compute.dtype.value,
            device=compute.device.value,
            stream=self.stream,
            seed=compute.seed,
            progress=progress,
        )

    def sweep(
        self,
        checkpoint: Checkpoint,
        compute: Compute,
        progress: Progress,
        *,
        max_loss: float | None,
        task: Path | Tasks | None,
        repair_samples: int | None,
    ) -> Sweep:
        """What cutting the tail at every depth does; repair_samples: with repair, on so many samples of the text."""
        from shortstack.sweeping import sweep

        tokens = (
            self._repair_tokens(checkpoint, compute.seed, repair_samples)
            if repair_samples
            else self._tokens(checkpoint, compute.seed)
        )
        return sweep(
            checkpoint,
            tokens,
            repair=repair_samples is not None,
            max_loss=max_loss,
            task=task,
            dtype=compute.dtype.value,
            device=compute.device.value,
            stream=self.stream,
            progress=progress,
        )

    def select(self, checkpoint: Checkpoint, choice: Choice, compute: Compute, progress: Progress) -> Plan:
        """The plan that measuring shorter models gives."""
        from shortstack.selecting import select

        assert choice.drop  # noqa: S101  Choice.check has seen to it
        return select(
            checkpoint,
            self._tokens(checkpoint, compute.seed),
            drop=choice.drop,
            metric=choice.metric or "ppl",
            step=choice.step,
            keep_first=choice.keep_first,
            keep_last=choice.keep_last,
            dtype=compute.dtype.value,
            device=compute.device.value,
            stream=self.stream,
            seed=compute.seed,
            progress=progress,
        )

    def check_repair(self) -> None:
        """Refuse --samples where --repair-samples was meant."""
        if self.samples != Calibration.samples:
            raise InputError(
                "--samples",
                expected="--repair-samples, the windows to repair on",
                found=f"--samples {self.samples}",
                fix=f"write --repair-samples {self.samples}",
            )

    def repair(
        self, checkpoint: Checkpoint, chosen: Plan, compute: Compute, progress: Progress, samples: int
    ) -> Repair:
        """What refitting kept layers gives for a cut, on so many samples of the text."""
        from shortstack.repairing import repair

        return repair(
            checkpoint,
            frozenset(chosen.removed),
            self._repair_tokens(checkpoint, compute.seed, samples),
            dtype=compute.dtype.value,
            device=compute.device.value,
            stream=self.stream,
            progress=progress,
        )

    def _repair_tokens(self, checkpoint: Checkpoint, seed: int, samples: int) -> Tokens:
        """At most so many samples: a short text has fewer."""
        from shortstack.refitting import HELD_OUT
        from shortstack.tokens import Tokens

        return Tokens.read(
            self.text,
            checkpoint.tokenizer(),
            samples=samples,
            length=self.length,
            seed=seed,
            at_least=HELD_OUT,
        )

    def _tokens(self, checkpoint: Checkpoint, seed: int) -> Tokens:
        from shortstack.tokens import Tokens

        return Tokens.read(self.text, checkpoint.tokenizer(), samples=self._count(), length=self.length, seed=seed)

    def _count(self) -> int | None:
        """How many samples; None for all."""
        return parse_samples(self.samples)
