"""The options of heal, in groups: what the command line, a recipe and `heal --dry-run` know of healing is this one list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortstack.errors import InputError
from shortstack.methods import METHODS, method_named

if TYPE_CHECKING:
    from shortstack.healing.healer import Method
    from shortstack.healing.learner import Objective
    from shortstack.schedule import Schedule

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

    def made(self) -> Method:
        """The method with those options that it has.

        Raises:
            InputError: an option that the method does not know.
        """
        kind = method_named(self.method).load()
        known = {field.name for field in fields(kind)}
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "method"}
        for name, value in given.items():
            if name not in known and value != vars(Part)[name]:
                raise InputError(
                    f"--{name.replace('_', '-')}",
                    expected=f"an option that --method {self.method} knows",
                    found=f"{value} beside it",
                    fix="leave it out, or name another method",
                )
        made: Method = kind(**{name: value for name, value in given.items() if name in known})
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
        from shortstack.healing.learner import Objective

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
    decay: Annotated[str, typer.Option(help="linear, cosine, constant, or another of transformers' schedules.")] = (
        "linear"
    )
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = 0.0
    max_grad_norm: Annotated[float, typer.Option(min=0, help="Longer gradients are shortened to this.")] = 1.0
    optimizer: Annotated[str, typer.Option(help="As transformers names them.")] = "adamw_torch"
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
        from shortstack.schedule import Schedule

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
        """The loggers that are named.

        Raises:
            InputError: one is not installed, or transformers does not know it.
        """
        from transformers.integrations import get_available_reporting_integrations

        named = [name.strip() for name in self.report_to.split(",")] if self.report_to else []
        for name in named:
            if name not in get_available_reporting_integrations():
                raise InputError(
                    "--report-to",
                    expected=f"loggers that are installed: {', '.join(get_available_reporting_integrations()) or 'none'}",
                    found=name,
                    fix="install it, or name another: tensorboard, trackio, wandb",
                )
        return named


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

    def check(self) -> None:
        """Refuse halves of it."""
        if (self.step is None) != (self.drop is None) or (self.metric and self.step is None):
            raise InputError(
                "--step",
                expected="--step and --drop together, and --metric only beside them",
                found="one without the other",
                fix="write --drop 25% --step 1, or prune first",
            )


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
