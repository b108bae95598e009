"""Options that several verbs share: of the model, the machine, and what is said.

Nothing heavy is imported here: the command line reads this file to answer `--help`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortstack.cli import console
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.machine.files import finite, save_json
from shortstack.machine.progress import bars, say

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.machine.progress import Progress


MODEL = "A directory, a hub id, a .gguf file, or `demo` (SmolLM2-135M-Instruct)."


Model = Annotated[str, typer.Argument(help=MODEL, show_default=False)]
Out = Annotated[Path, typer.Option("--output", "-o", help="New directory; never overwritten.", show_default=False)]
Saved = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the result to this JSON file, too.", show_default=False)
]
REPAIRED_ON = "Windows to repair on, at most; at least eight of each text."
REPAIR_SAMPLES = 256


def repair_text(text: CalibrationText, samples: int) -> CalibrationText:
    """The text to repair on: at most so many windows in all, since a short text has fewer."""
    if text.samples != CalibrationText.samples:
        raise InputError(
            text.samples,
            expected="--repair-samples, the windows to repair on",
            fix=f"write --repair-samples {text.samples}",
            option="samples",
        )
    return text.of_all(samples)


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
        return typed(self)

    def open(self, model: str, progress: Progress) -> Checkpoint:
        from shortstack.checkpoint import Checkpoint

        return Checkpoint.open(
            model, revision=self.revision, trust_remote_code=self.trust_remote_code, progress=progress
        )


def typed(*groups: object) -> list[str]:
    """The options of groups that are not at their default, as they are typed.

    >>> typed(Compute(stream=True, seed=3)), typed(Source(), CalibrationText("pydoc"))
    (['--seed', '3', '--stream'], ['--text', 'pydoc'])
    """
    words: list[str] = []
    for group in groups:
        for each in fields(group):  # type: ignore[arg-type]
            value, name = getattr(group, each.name), each.name.replace("_", "-")
            if value is True or value is False:
                words += [f"--{name}" if value else f"--no-{name}"] if value != each.default else []
            elif value != each.default:
                words += [f"--{name}", str(value)]
    return words


def check_unused(where: str, *groups: object) -> None:
    """Refuse options that change nothing, because what they shape is made already."""
    for group in groups:
        for option in fields(group):  # type: ignore[arg-type]
            if getattr(group, option.name) != option.default:
                raise unused(where, f"--{option.name.replace('_', '-')}", getattr(group, option.name))


def unused(where: str, name: str, value: object) -> InputError:
    """The error for an option that changes nothing."""
    return InputError(
        f"{name} {value}", expected=f"no {name}: it changes nothing here", fix="leave it out", where=where
    )


@dataclass(frozen=True)
class Reporting:
    """How much is said, and in which form."""

    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no next step.")] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also what the libraries say, and where an error comes from.")
    ] = False

    def result(self, data: Mapping[str, Any], show: Callable[[], None], output: Path | None = None) -> None:
        """The result: as JSON, or as `show` shows it; then in a file, so that a full disk does not cost it."""
        if self.json:
            console.show_json(data)
        else:
            show()
        if output:
            save_json(output, finite(data))

    def bars(self) -> AbstractContextManager[Progress]:
        return bars(quiet=self.quiet, verbose=self.verbose)

    def next_step(self, *words: object) -> None:
        """What to type next: the words of a shortstack command."""
        self.say(shlex.join(["shortstack", *map(str, words)]))

    def next_cut(self, model: object, checkpoint: Checkpoint, *words: str) -> None:
        """How layers are chosen best: by what blocks of them cost once the kept ones are refitted, where weights can be."""
        quantised = checkpoint.config.get("quantization_config")
        how = () if quantised else ("--strategy", "repaired-blocks", "--repair")
        self.next_step("prune", model, *how, "--drop", "25%", "-o", "pruned", *words)

    def next_prune(self, model: object, checkpoint: Checkpoint | None, *how: object) -> None:
        """How a chosen cut is made best: with kept layers refitted, where weights can be; checkpoint: None if not opened."""
        quantised = checkpoint is not None and checkpoint.config.get("quantization_config")
        self.next_step("prune", model, *how, *(() if quantised else ("--repair",)), "-o", "pruned")

    def next_measure(self, model: object, unpruned: object | None, *words: str) -> None:
        """How a shorter model is judged best: beside the unpruned one, and by what it writes."""
        beside = ("--against", unpruned) if unpruned else ()
        self.next_step("evaluate", model, *beside, "--probes", *words)

    def next_heal(self, model: object, teacher: str | None, *words: str) -> None:
        """How a model heals best: with the recipe, and its unpruned model as the teacher."""
        taught = ("--recipe", "best", "--data", "YOUR.txt", "--teacher", teacher or "UNPRUNED")
        self.next_step("heal", model, *taught, "-o", "healed", *words)

    def warn(self, message: str | None) -> None:
        """What nobody should miss: on stderr, whatever else is asked for."""
        if message:
            say(f"Warning: {message}")

    def say(self, what: str) -> None:
        """What to do next, unless nobody wants to read it."""
        if not self.quiet and not self.json:
            console.next_step(what)


@contextmanager
def going_on(how: str) -> Iterator[None]:
    """Say how a run goes on that ctrl-C or a signal ended."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        say(f"To go on: {how}.")
        raise


@dataclass(frozen=True)
class Session:
    """What a verb that computes has besides its own options: where it computes, which code it trusts, what it says."""

    compute: Compute
    source: Source
    report: Reporting

    @property
    def alone(self) -> Source:
        """The source for a second model: --revision is of the first."""
        return replace(self.source, revision=None)
