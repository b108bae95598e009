"""Options that several verbs share, each group a dataclass whose fields are the options.

>>> @verb()  # doctest: +SKIP
... def score(model: str, calibration: Calibration) -> None:  # gains --text, --samples, --length, ...
...     ...

Nothing heavy is imported here: the command line reads this file to answer `--help`.
"""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from shortstack import console
from shortstack.errors import InputError
from shortstack.metrics import METRICS, metric_named, metrics_named
from shortstack.planning import Plan, check_choice, parse_drop, plan, show_layers
from shortstack.scores import Scores
from shortstack.suites import SUITES

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.evaluation import Tasks
    from shortstack.progress import Progress
    from shortstack.repairing import Repair
    from shortstack.sweeping import Sweep
    from shortstack.tokens import Tokens

MODEL = "A directory, a hub id, a .gguf file, or `demo` (SmolLM2-135M-Instruct)."
TEXT = "pydoc, a .txt, .json or .jsonl file, or a hub dataset org/name."


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Backend(StrEnum):
    shortstack = "shortstack"
    vllm = "vllm"


Model = Annotated[str, typer.Argument(help=MODEL, show_default=False)]
Out = Annotated[Path, typer.Option("--output", "-o", help="New directory; never overwritten.", show_default=False)]
RepairSamples = Annotated[int, typer.Option(min=4, help="Windows to repair on, at most; one in four is held out.")]
TaskNames = Annotated[
    str | None,
    typer.Option(
        help=f"Comma-separated suites ({', '.join(SUITES)}) or tasks of lm-evaluation-harness.", show_default=False
    ),
]
REPAIR_SAMPLES = 256
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """Numbers with commas between them.

    >>> parse_batch_sizes("1,8")
    (1, 8)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(
            "--batch-size", expected="numbers above 0, with commas between", found=repr(text), fix="write 1,8"
        )
    return tuple(dict.fromkeys(map(int, parts)))


@dataclass(frozen=True)
class Source:
    """Which checkpoint, and how far it is trusted."""

    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the checkpoint's own Python code.")
    ] = False

    @property
    def words(self) -> list[str]:
        """The options as they were typed, for the next command on the same model."""
        return [
            *(["--revision", self.revision] if self.revision else []),
            *(["--trust-remote-code"] if self.trust_remote_code else []),
        ]

    def open(self, model: str, progress: Progress) -> Checkpoint:
        from shortstack.checkpoint import Checkpoint

        return Checkpoint.open(
            model, revision=self.revision, trust_remote_code=self.trust_remote_code, progress=progress
        )


@dataclass(frozen=True)
class Compute:
    """Where, in what, and with which seed to compute."""

    seed: Seed = 0
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto
    dtype: Annotated[Dtype, typer.Option(help="What to compute in.")] = Dtype.auto


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
        if self.samples == "all":
            return None
        if not self.samples.isdecimal() or not int(self.samples):
            raise InputError(
                "--samples", expected="a number of windows, or all", found=repr(self.samples), fix="write --samples 10"
            )
        return int(self.samples)


def check_unused(where: str, *groups: object) -> None:
    """Refuse options that change nothing, because what they shape is made already.

    Raises:
        InputError: an option of one of the groups is not at its default.
    """
    for group in groups:
        for option in fields(group):  # type: ignore[arg-type]
            if getattr(group, option.name) != option.default:
                name = f"--{option.name.replace('_', '-')}"
                raise InputError(
                    where,
                    expected=f"no {name}: it changes nothing here",
                    found=f"{name} {getattr(group, option.name)}",
                    fix="leave it out",
                )


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
        from shortstack.aligning import aligned
        from shortstack.pruning import pruned_config

        allowed = functools.partial(self._allows, checkpoint.anatomy.layers)
        found = chosen if self.layers else aligned(checkpoint, chosen, allowed=allowed, progress=progress)
        if found is None or self.layers:
            pruned_config(checkpoint, chosen)  # says why not
        if found is not None and found != chosen:
            console.say(
                f"Layers {show_layers(chosen.removed)} cannot be cut exactly from this model; the nearest that can: "
                f"{show_layers(found.removed)}."
            )
        return found or chosen

    def _allows(self, layers: int, removed: Set[int]) -> bool:
        """Whether a cut keeps what must be kept, and is one window where that was asked for."""
        inside = self.keep_first <= min(removed) and max(removed) < layers - self.keep_last
        return inside and (not self.one_window or max(removed) - min(removed) < len(removed))


@dataclass(frozen=True)
class Writing:
    """What is looked at of the text that a model writes."""

    probes: Annotated[
        bool, typer.Option("--probes", help="Small generation tasks: copying, counting, brackets, sums, JSON.")
    ] = False
    probe_items: Annotated[int, typer.Option(min=2, max=100, help="Items of each probe, drawn by seed.")] = 50
    collapse_check: Annotated[
        bool | None,
        typer.Option(
            "--collapse-check/--no-collapse-check",
            help="Look for loops and silence in what it writes. Default: where shortstack cut or healed it.",
            show_default=False,
        ),
    ] = None

    def asked(self) -> dict[str, Any]:
        """The arguments of evaluate()."""
        if not self.probes and self.probe_items != Writing.probe_items:
            raise InputError("--probe-items", expected="--probes", found="no --probes", fix="add --probes")
        return {"probe_items": self.probe_items if self.probes else 0, "collapse": self.collapse_check}


@dataclass(frozen=True)
class Asking:
    """Which tasks are asked, and how."""

    tasks: TaskNames = None
    limit: Annotated[int | None, typer.Option(help="Only the first n documents of each task.", show_default=False)] = (
        None
    )
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder of .jsonl or .parquet files for standard tasks.", show_default=False)
    ] = None
    include: Annotated[
        Path | None, typer.Option(help="A folder of your own lm-eval task files.", show_default=False)
    ] = None
    batch_size: Annotated[str, typer.Option(help="Sequences in a forward: a number, or auto, by their tokens.")] = (
        "auto"
    )
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a prompt with its answer. Default: the model's positions.", show_default=False),
    ] = None
    backend: Annotated[Backend, typer.Option(help="Who answers the tasks: shortstack itself, or vLLM.")] = (
        Backend.shortstack
    )

    def asked(self, seed: int) -> Tasks | None:
        """The tasks of evaluate(); None where none are named."""
        if self.tasks is None:
            check_unused("evaluate without --tasks", self)
            return None
        from shortstack.evaluation import Tasks

        if self.batch_size != "auto" and not self.batch_size.isdecimal():
            raise InputError(
                "--batch-size", expected="a number or auto", found=repr(self.batch_size), fix="write --batch-size 16"
            )
        return Tasks(
            self.tasks,
            limit=self.limit,
            data=self.data_dir,
            include=self.include,
            batch=None if self.batch_size == "auto" else int(self.batch_size),
            max_length=self.max_length,
            seed=seed,
            backend=self.backend.value,
        )


@dataclass(frozen=True)
class Report:
    """How much is said, and in which form."""

    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no next step.")] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also what the libraries say, and where an error comes from.")
    ] = False

    def bars(self) -> AbstractContextManager[Progress]:
        return console.bars(quiet=self.quiet, verbose=self.verbose)

    def next_step(self, *words: object) -> None:
        """What to type next: the words of a shortstack command."""
        self.say(shlex.join(["shortstack", *map(str, words)]))

    def warn(self, message: str | None) -> None:
        """What nobody should miss: on stderr, whatever else is asked for."""
        if message:
            console.say(f"Warning: {message}")

    def say(self, what: str) -> None:
        """What to do next, unless nobody wants to read it."""
        if not self.quiet and not self.json:
            console.next_step(what)


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each parameter that is a group replaced by that group's options."""
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(verb).parameters.values():
        group = groups.get(parameter.name)
        found = _options(group) if group else [parameter.replace(annotation=hints[parameter.name])]
        parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in found]

    @functools.wraps(verb)
    def call(**options: Any) -> None:
        made = {
            name: group(**{field.name: options.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        verb(**made, **options)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _options(group: Any) -> list[inspect.Parameter]:
    """A parameter for each field, under the first sentence of the group's docstring."""
    heading = inspect.cleandoc(group.__doc__).partition(".")[0]
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_under(heading, hints[field.name]),
        )
        for field in fields(group)
    ]


def _under(heading: str, hint: Any) -> Any:
    """The same option in that section of --help; a copy, since groups share some."""
    kind, option = get_args(hint)
    option = copy(option)
    option.rich_help_panel = heading
    return Annotated[kind, option]
