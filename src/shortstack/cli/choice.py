"""Which layers go, as options, and the plan that they give."""

from __future__ import annotations

import functools
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli.options import TEXT, Compute
from shortstack.data.sources import parse_samples
from shortstack.errors import InputError
from shortstack.machine.progress import say
from shortstack.planning import Plan, plan
from shortstack.planning.layer_sets import check_choice, parse_drop, show_layers
from shortstack.scoring import METRICS, Scores
from shortstack.scoring.metrics import metric_named, metrics_named

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.data import Tokens
    from shortstack.evaluation import Tasks
    from shortstack.machine.progress import Progress
    from shortstack.repairing import Repair
    from shortstack.scoring import Sweep


@dataclass(frozen=True)
class Choice:
    """Which layers go."""

    metric: Annotated[
        str | None, typer.Option(help=f"How to choose: {', '.join(METRICS)}. Default ppl.", show_default=False)
    ] = None
    drop: Annotated[
        str | None, typer.Option(help="How much to remove: 25% (rounded half up) or a count.", show_default=False)
    ] = None
    layers: Annotated[
        str | None, typer.Option(help="Remove exactly these: 22-29,3 (from 0, ranges inclusive).", show_default=False)
    ] = None
    block: Annotated[bool, typer.Option("--block", help="Remove one contiguous window.")] = False
    step: Annotated[
        int | None, typer.Option(min=1, help="Remove so many at a time, and score again.", show_default=False)
    ] = None
    search: Annotated[bool, typer.Option("--search", help="Search for the set that changes the output least.")] = False
    keep_first: Annotated[int, typer.Option(min=0, help="Never remove the first n layers.")] = 0
    keep_last: Annotated[int, typer.Option(min=0, help="Never remove the last n layers.")] = 0

    def check(self, *, planned: bool = False) -> None:
        """Say what is wrong with the words before any model is opened; planned: a plan is given instead of them."""
        if planned and self != Choice():
            raise InputError(
                "--plan",
                expected="a plan alone",
                found="options that choose layers beside it",
                fix="give one or the other",
            )
        metric_named(self.metric or "ppl")
        if self.layers is not None and self.metric is not None:
            raise InputError("--layers", expected="explicit layers alone", found="--metric beside them", fix="give one")
        if planned:
            return
        check_choice(self.drop, self.layers, block=self.block)
        if self.measures:
            self._check_alone()

    def _check_alone(self) -> None:
        """Refuse ways to choose that exclude each other."""
        name, others = ("--search", {"--step": self.step, "--metric": self.metric}) if self.search else ("--step", {})
        beside = [
            other for other, given in ({"--layers": self.layers, "--block": self.block} | others).items() if given
        ]
        if beside:
            raise InputError(
                name, expected=f"{name} without {beside[0]}", found=f"{beside[0]} beside it", fix="give one of them"
            )

    @property
    def one_window(self) -> bool:
        """Whether one contiguous window goes: because that was asked for, or since the metric scores nothing else."""
        return self.block or not metric_named(self.metric or "ppl").singles

    @property
    def measures(self) -> bool:
        """Whether shorter models are measured, for which scores of the whole model are not enough."""
        return self.step is not None or self.search

    def plan(self, source: Scores | int, seed: int, metric: str | None = None) -> Plan:
        """plan() with these options; `metric` goes before the one that was named."""
        options = asdict(self) | {"metric": metric or self.metric}
        return plan(source, **{name: options[name] for name in options.keys() - {"step", "search"}}, seed=seed)

    def like(self, checkpoint: Checkpoint) -> Plan:
        """A plan of the same size, made at once: what does not fit the model or the disk is said before it is scored."""
        return self.plan(checkpoint.anatomy.layers, 0, "reverse")

    def plan_for(
        self, checkpoint: Checkpoint, calibration: Calibration, compute: Compute, progress: Progress
    ) -> tuple[Plan, Scores | None]:
        """A plan for a checkpoint, scored first when the metric looks at activations or loss."""
        self.like(checkpoint)
        layers, name = checkpoint.anatomy.layers, self.metric or "ppl"
        if self.measures:
            chosen, scores = calibration.select(checkpoint, self, compute, progress), None
        elif self.layers is not None or metric_named(name).feed == "layers":
            chosen, scores = self.plan(layers, compute.seed, name), None
        else:
            window = None if metric_named(name).singles else parse_drop(self.drop or 0, layers)
            scores = calibration.score(checkpoint, [name], compute, progress, window=window)
            chosen = self.plan(scores, compute.seed, name)
        return self._exact(checkpoint, chosen, progress), scores

    def _exact(self, checkpoint: Checkpoint, chosen: Plan, progress: Progress) -> Plan:
        """The chosen cut, or the nearest exact one, unless the layers were named one by one."""
        from shortstack.planning.exactness import aligned, pruned_config

        allowed = functools.partial(self._allows, checkpoint.anatomy.layers)
        found = chosen if self.layers else aligned(checkpoint, chosen, allowed=allowed, progress=progress)
        if found is None or self.layers:
            pruned_config(checkpoint, chosen)  # says why not
        if found is not None and found != chosen:
            say(
                f"Layers {show_layers(chosen.removed)} cannot be cut exactly from this model; the nearest that can: "
                f"{show_layers(found.removed)}."
            )
        return found or chosen

    def _allows(self, layers: int, removed: Set[int]) -> bool:
        """Whether a cut keeps what must be kept, and is one window where that was asked for."""
        inside = self.keep_first <= min(removed) and max(removed) < layers - self.keep_last
        return inside and (not self.one_window or max(removed) - min(removed) < len(removed))


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
        from shortstack.scoring import sweep

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
        from shortstack.planning import select

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
        from shortstack.data import Tokens
        from shortstack.repairing.fit import HELD_OUT

        return Tokens.read(
            self.text,
            checkpoint.tokenizer(),
            samples=samples,
            length=self.length,
            seed=seed,
            at_least=HELD_OUT,
        )

    def _tokens(self, checkpoint: Checkpoint, seed: int) -> Tokens:
        from shortstack.data import Tokens

        return Tokens.read(self.text, checkpoint.tokenizer(), samples=self._count(), length=self.length, seed=seed)

    def _count(self) -> int | None:
        """How many samples; None for all."""
        return parse_samples(self.samples)
