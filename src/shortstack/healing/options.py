"""The options of heal, in groups: what the command line, a recipe and `heal --dry-run` know of healing is this one list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortstack.data.sources import check_source, parse_samples
from shortstack.errors import InputError
from shortstack.healing.dataset import Lessons
from shortstack.healing.layer_choice import Places
from shortstack.healing.methods import METHODS, check_adapter, method_named
from shortstack.healing.objective import Objective
from shortstack.healing.schedule import DECAYS, OPTIMIZERS, Schedule
from shortstack.planning.layer_sets import check_choice
from shortstack.scoring.metrics import check_step

if TYPE_CHECKING:
    from shortstack.healing.healer import Method


LOGGERS = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
DATA = "Text or instructions: pydoc, .txt, .jsonl or .json (text, alpaca, dolly, chat or prompt), or a hub dataset."


@dataclass(frozen=True)
class Learned:
    """What is learnt from."""

    data: Annotated[str | None, typer.Option(help=DATA, show_default=False)] = None
    max_length: Annotated[int, typer.Option(min=4, help="Longest sample, in tokens.")] = 256
    max_samples: Annotated[
        int | None, typer.Option(min=2, help="Use at most this many samples.", show_default=False)
    ] = None
    held_out: Annotated[int | None, typer.Option(min=1, help="Samples held out. Default: 5 %.", show_default=False)] = (
        None
    )
    self_generate: Annotated[
        bool, typer.Option("--self-generate", help="Let the teacher answer the prompts, and learn from that.")
    ] = False

    def check(self) -> None:
        """Say which numbers leave nothing to learn, before anything is read."""
        Lessons(**{**asdict(self), "data": self.data or ""}).check()


@dataclass(frozen=True)
class Part:
    """Which part trains, and how."""

    method: Annotated[str, typer.Option(help="; ".join(f"{m.name}: {m.trains}" for m in METHODS.values()))] = "partial"
    last: Annotated[
        int | None,
        typer.Option(min=0, help="So many of the last layers. Default: 3; adapters: all.", show_default=False),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(help="Train exactly these: 10-13,21 (as the pruned model numbers them).", show_default=False),
    ] = None
    near_cut: Annotated[
        int | None,
        typer.Option(min=1, help="Train so many layers on both sides of each cut.", show_default=False),
    ] = None
    head: Annotated[
        bool | None,
        typer.Option(
            "--head/--no-head",
            help="Train the head. Default: with partial, unless it is tied to the embedding.",
            show_default=False,
        ),
    ] = None
    untie_head: Annotated[
        bool, typer.Option("--untie-head", help="Make a tied head a matrix of its own and train it; adds parameters.")
    ] = False
    rank: Annotated[int, typer.Option(min=1, help="Of adapters.")] = 8
    alpha: Annotated[float, typer.Option(help="Adapters count alpha / rank.")] = 16.0
    dropout: Annotated[float, typer.Option(help="Of what enters an adapter.")] = 0.05
    targets: Annotated[
        str | None,
        typer.Option(help="Matrices that get adapters: q_proj,v_proj. Default: all of a layer.", show_default=False),
    ] = None

    def check(self) -> None:
        """Say what is wrong whatever the model; torch is not needed for it.

        Raises:
            InputError: no such method, an option that it does not know, or a number out of its range.
        """
        method = method_named(self.method)
        method.check_options({name: value for name, value in asdict(self).items() if name != "method"}, vars(Part))
        Places(self.last, self.layers, self.near_cut).check()
        if "rank" in method.options:
            check_adapter(rank=self.rank, alpha=self.alpha, dropout=self.dropout, last=self.last)

    def check_typed(self, typed: Callable[[str], bool]) -> None:
        """Refuse an option that was typed for a method that does not know it, also one that says what is usual.

        Raises:
            InputError: the first of them.
        """
        given = {name: value for name, value in asdict(self).items() if name != "method" and typed(name)}
        method_named(self.method).check_options(given)

    def made(self) -> Method:
        """The method with those options that it has.

        Raises:
            InputError: as check.
        """
        self.check()
        method = method_named(self.method)
        made: Method = method.load()(**{name: getattr(self, name) for name in method.options})
        return made


@dataclass(frozen=True)
class Loss:
    """What is minimised."""

    loss: Annotated[
        str, typer.Option(help="sft: the next token; distill: what the teacher says of the next token.")
    ] = "sft"
    teacher: Annotated[
        str | None, typer.Option(help="The unpruned model, for distill and --self-generate.", show_default=False)
    ] = None
    top_k: Annotated[int, typer.Option(min=1, help="Of the teacher's tokens, so many by themselves.")] = 64
    temperature: Annotated[float, typer.Option(help="Of teacher and model.")] = 1.0
    hidden_weight: Annotated[float, typer.Option(help="Weight of the distance between last hidden states.")] = 0.0

    def made(self) -> Objective:
        """What is minimised; without torch."""
        return Objective(self.loss, self.top_k, self.temperature, self.hidden_weight)


@dataclass(frozen=True)
class Course:
    """How long and how fast."""

    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 2
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per optimizer step.")] = 16
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Samples held at once. Default: the largest divisor of the batch up to 16.", show_default=False
        ),
    ] = None
    warmup_steps: Annotated[int, typer.Option(min=0, help="At most; never more than a tenth of the steps.")] = 100
    decay: Annotated[str, typer.Option(help=f"{', '.join(DECAYS[:-1])} or {DECAYS[-1]}.")] = "linear"
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = 0.0
    max_grad_norm: Annotated[float, typer.Option(min=0, help="Longer gradients are shortened to this; 0: none is.")] = (
        1.0
    )
    optimizer: Annotated[str, typer.Option(help=f"{', '.join(OPTIMIZERS[:-1])} or {OPTIMIZERS[-1]}.")] = "adamw_torch"
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute layers twice, and keep less for it.")
    ] = False
    eval_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps between held-out losses. Default: an epoch.", show_default=False)
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many held-out losses without a lower one.", show_default=False),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")] = 0

    def made(self) -> Schedule:
        """How long and how fast; without torch."""
        return Schedule(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Going:
    """How a run is kept, and what it tells."""

    recipe: Annotated[
        str | None,
        typer.Option(
            help="A preset (`shortstack ls recipes`) or a .yaml file; typed options go before it.", show_default=False
        ),
    ] = None
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume", help="Go on with an unfinished run, or start it again.", show_default=False
        ),
    ] = None
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep on disk what frozen layers and the teacher give.")
    ] = True
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would train, and about how much memory and time it takes.")
    ] = False
    report_to: Annotated[
        str | None, typer.Option(help="Comma-separated loggers: tensorboard, trackio, wandb.", show_default=False)
    ] = None
    plot: Annotated[Path | None, typer.Option(help="Draw the loss curve: an .svg, .png or .pdf file.")] = None

    @property
    def loggers(self) -> list[str]:
        """The loggers that are named."""
        return [name.strip() for name in self.report_to.split(",")] if self.report_to else []

    def check_loggers(self) -> None:
        """Say which logger is not installed; transformers is asked only for those that we do not name.

        Raises:
            InputError: one is not, or transformers does not know it.
        """
        for name in self.loggers:
            if name not in LOGGERS:
                _check_integration(name)
            elif not any(find_spec(library) for library in LOGGERS[name]):
                raise InputError(
                    f"--report-to {name}",
                    expected=f"{name}, which logs what training says",
                    found="none installed",
                    fix=f"pip install {name}",
                )


@dataclass(frozen=True)
class InTurns:
    """Pruning and healing in turns."""

    step: Annotated[
        int | None, typer.Option(min=1, help="Prune so many layers and heal, again and again.", show_default=False)
    ] = None
    drop: Annotated[
        str | None, typer.Option(help="With --step: how much goes in all, 25% or a count.", show_default=False)
    ] = None
    metric: Annotated[
        str | None, typer.Option(help="With --step: how layers are chosen. Default: ppl.", show_default=False)
    ] = None
    text: Annotated[
        str | None, typer.Option(help="With --step: what the metric looks at. Default: pydoc.", show_default=False)
    ] = None
    samples: Annotated[
        str | None, typer.Option(help="With --step: windows of it, or all. Default: 10.", show_default=False)
    ] = None
    length: Annotated[
        int | None, typer.Option(min=4, help="With --step: tokens of a window. Default: 128.", show_default=False)
    ] = None

    @property
    def chosen_by(self) -> dict[str, Any]:
        """What was said of how layers are chosen each time."""
        said = {"metric": self.metric, "text": self.text, "samples": self.samples, "length": self.length}
        given = {name: value for name, value in said.items() if value is not None}
        return {name: parse_samples(value) if name == "samples" else value for name, value in given.items()}

    def check(self) -> None:
        """Refuse halves of it."""
        if (self.step is None) != (self.drop is None) or (self.chosen_by and self.step is None):
            raise InputError(
                "--step",
                expected="--step and --drop together, and --metric, --text, --samples and --length only beside them",
                found="one without the other",
                fix="write --drop 25% --step 1, or prune first",
            )
        if self.step is not None:
            check_choice(self.drop, None)
            check_step(self.step, self.metric or "ppl")


@dataclass(frozen=True)
class Asked:
    """A healing as it is asked for."""

    learned: Learned
    part: Part
    loss: Loss
    course: Course
    turns: InTurns

    def check(self) -> None:
        """Say what is wrong before a model is opened, and without torch.

        Raises:
            InputError: as check_healing and InTurns.check; no data or none there; a teacher without need, or a need without
                one; or a library that is missing.
        """
        self.turns.check()
        check_healing(self.learned, self.part, self.loss, self.course)
        self.loss.made().check_teacher(self.loss.teacher, answers=self.learned.self_generate)
        method_named(self.part.method).check()
        self.course.made().check()
        if not self.learned.data:
            raise InputError(
                "--data", expected="text or instructions to learn from", found="none", fix="add --data pydoc"
            )
        check_source(self.learned.data)

    def arguments(self) -> dict[str, Any]:
        """As heal_arguments()."""
        return heal_arguments(self.learned, self.part, self.loss, self.course)


def _check_integration(name: str) -> None:
    from transformers.integrations import get_available_reporting_integrations

    known = get_available_reporting_integrations()
    if name not in known:
        raise InputError(
            "--report-to",
            expected=f"loggers that are installed: {', '.join(known) or 'none'}",
            found=name,
            fix=f"install it, or name another: {', '.join(LOGGERS)}",
        )


def check_healing(learned: Learned, part: Part, loss: Loss, course: Course) -> None:
    """Say what is wrong with the options of heal whatever the model and the data are; torch is not needed for it.

    Raises:
        InputError: the first that is out of its range, or does not go with another.
    """
    part.check()
    learned.check()
    loss.made()
    course.made()


def heal_arguments(learned: Learned, part: Part, loss: Loss, course: Course) -> dict[str, Any]:
    """What heal() is given for these options, but the teacher, which is a model to open."""
    return {
        **asdict(learned),
        "method": part.made(),
        "objective": loss.made(),
        "schedule": course.made(),
    }


def heal_groups(values: Mapping[str, Any]) -> tuple[Learned, Part, Loss, Course]:
    """The options by their groups, from their values by name; the default where none is named."""

    def made(group: Any) -> Any:
        return group(**{field.name: values[field.name] for field in fields(group) if field.name in values})

    return made(Learned), made(Part), made(Loss), made(Course)


def option_defaults() -> dict[str, Any]:
    """The options of heal by name, with their defaults."""
    return {name: value for group in heal_groups({}) for name, value in asdict(group).items()}
