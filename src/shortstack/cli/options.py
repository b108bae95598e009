"""Options that several verbs share: of the model, the machine, and the output.

Nothing heavy is imported here: the command line reads this file to answer `--help`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter
from pydantic import Field

from shortstack.cli import console
from shortstack.data import Sources, Text
from shortstack.data.text import MIX, SOURCES_HELP
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.machine.files import check_new, check_picture, save_json
from shortstack.machine.formats import option_words
from shortstack.machine.options import Amount, changed_options, options
from shortstack.machine.progress import progress_bar, say

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.machine.progress import Progress
    from shortstack.machine.tables import Tabled


MODEL = "A directory, a hub id, a .gguf file, or `demo` (SmolLM2-135M-Instruct)."


Model = Annotated[str, Parameter(help=MODEL)]
Out = Annotated[Path, Parameter(alias="-o", help="New directory; never overwritten.")]


def _written(check: Callable[[Path], None]) -> Parameter:
    """Return how a file that a verb writes is read: whether it can be written is checked at once."""

    def checked(_type: Any, path: Path | None) -> None:
        if path:
            check(path)

    return Parameter(validator=checked)


NEW, PICTURE = _written(check_new), _written(check_picture)
Saved = Annotated[Path | None, NEW, Parameter(alias="-o", help="Also write the result to this JSON file.")]
RECORDED = ""  # the base model on record in the pruned model's shortstack.json
Base = Annotated[
    str | None,
    Parameter(
        negative_none="no-",
        show_default=False,
        help="Base model. Default: the one on record in the pruned model. --no-base: none.",
    ),
]


def group(title: str, place: int = 1) -> Group:
    """Return a heading of options; those of a lower place come first, below the verb's own."""
    return Group(title, sort_key=place)


def expand_fields(heading: Group | None = None, *, without: str = "-") -> Parameter:
    """Return a parameter that makes an option of each field of a class, except some, as a|b."""
    some = Parameter(name="*", parse=re.compile(f"^(?!({without})$)"))
    return Parameter.combine(some, Parameter(group=heading)) if heading else some


COMMIT = re.compile(r"[0-9a-f]{40}")
CALIBRATION, MACHINE = group("Calibration text", 2), group("Compute", 7)
ORIGIN, SAID = group("Checkpoint", 8), group("Output", 9)


@options
class Calibration:
    """The text that layers are chosen on, and that a cut is repaired on."""

    calibration_data: Sources = Field(MIX, description=f"Text: {SOURCES_HELP}")
    num_samples: Amount = Field(10, description="Windows per text, drawn at random, or a share such as 10%.")
    seq_length: int = Field(128, ge=4, description="Tokens per window.")

    @property
    def text(self) -> Text:
        return Text(self.calibration_data, self.num_samples, self.seq_length)


@options
class Source:
    """Model revision and remote code."""

    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    trust_remote_code: bool = Field(False, description="Run the checkpoint's own Python code.")

    @property
    def command_line(self) -> list[str]:
        """The options that are not at their default, as they are typed."""
        return option_words(changed_options(self))

    def open(self, model: str, progress: Progress) -> Checkpoint:
        from shortstack.checkpoint import Checkpoint

        return Checkpoint.open(
            model, revision=self.revision, trust_remote_code=self.trust_remote_code, progress=progress
        )


def check_unused(where: str, *groups: object) -> None:
    """Refuse options without effect."""
    for group in groups:
        for name, value in changed_options(group).items():
            raise unused(where, name, value)


def unused(where: str, name: str, value: object) -> InputError:
    return InputError(f"{value} has no effect with {where}; remove it", option=name)


@options
class OutputOptions:
    """How much is printed, and in which form."""

    json: bool = Field(False, description="Print one JSON object on stdout.")
    quiet: Annotated[bool, Parameter(alias="-q")] = Field(False, description="Hide progress and the next step.")
    verbose: Annotated[bool, Parameter(alias="-v")] = Field(
        False, description="Also show library messages and tracebacks."
    )

    def result(self, result: Any, output: Path | None = None, plot: Path | None = None) -> None:
        """Write a result's files, then print it: a closed stdout costs no file, and a full disk not the result."""
        try:
            if output:
                check_new(output)  # again: hours may have passed since it was read
                save_json(output, result.to_dict())
            if plot:
                result.plot().save(plot)
        finally:
            self.show(result.to_dict(), result)

    def show(self, data: Mapping[str, Any], *results: Tabled) -> None:
        """Print one JSON object, or the tables of results."""
        if self.json:
            return console.show_json(data)
        for result in results:
            console.show_result(result)
        return None

    def bars(self) -> AbstractContextManager[Progress]:
        return progress_bar(quiet=self.quiet, verbose=self.verbose)

    def next_step(self, *words: object) -> None:
        self.say(shlex.join(["shortstack", *map(str, words)]))

    def next_cut(self, model: object, checkpoint: Checkpoint, *words: str) -> None:
        """Suggest the best way to choose layers: by what blocks cost once kept layers are refitted, where weights can be."""
        how = () if is_quantised(checkpoint) else ("--strategy", "repaired-blocks", "--repair")
        self.next_step("prune", model, *how, "--drop", "25%", "-o", "pruned", *words)

    def next_prune(self, model: object, checkpoint: Checkpoint | None, *how: object) -> None:
        """Suggest to make a chosen cut with kept layers refitted, where weights can be; checkpoint: None if not opened."""
        repair = () if checkpoint and is_quantised(checkpoint) else ("--repair",)
        self.next_step("prune", model, *how, *repair, "-o", "pruned")

    def next_measure(self, model: object, base: object | None, *words: str) -> None:
        """Suggest to evaluate a pruned model; base: the base model, if not the one on record."""
        self.next_step("evaluate", model, *(("--base", base) if base else ()), "--probes", *words)

    def next_heal(
        self, model: object, base: object | None, *words: str, data: str | None = None, recipe: str = "best"
    ) -> None:
        """Suggest to heal by a recipe; base: the base model, if not the one on record."""
        beside = ("--base", base) if base else ()
        self.next_step("heal", model, "--recipe", recipe, "--data", data or "YOUR.txt", *beside, "-o", "healed", *words)

    def warn(self, message: str | None) -> None:
        """Print a warning on stderr, even if the output is quiet or JSON."""
        if message:
            say(f"Warning: {message}")

    def say(self, what: str) -> None:
        if not self.quiet and not self.json:
            say(f"\nNext: {what}")


def is_quantised(checkpoint: Checkpoint) -> bool:
    return checkpoint.quantised


@contextmanager
def resume_hint(how: str) -> Iterator[None]:
    """Print how a run that ctrl-C or a signal ended continues."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        say(f"To continue: {how}.")
        raise


@dataclass(frozen=True)
class CommonOptions:
    """Options of all verbs that compute: device and dtype, revision and remote code, and output."""

    compute: Annotated[Compute, Parameter(name="*", group=MACHINE)] = Compute()
    source: Annotated[Source, Parameter(name="*", group=ORIGIN)] = Source()
    report: Annotated[OutputOptions, Parameter(name="*", group=SAID)] = OutputOptions()

    @property
    def alone(self) -> Source:
        """The source for a second model: --revision is of the first."""
        return replace(self.source, revision=None)

    def open_base(self, base: str | None, pruned: Checkpoint, progress: Progress) -> Checkpoint | None:
        """Open the base model: as named, or the one on record where `base` is RECORDED.

        None if there is none, or with a warning if the one on record cannot be opened.
        """
        name = pruned.made_from if base == RECORDED else base
        try:
            return self.open_unpruned(name, pruned, progress) if name else None
        except InputError as error:
            if base != RECORDED:
                raise error.about("base") from None
            self.report.warn(f"the base model on record cannot be opened ({error}); give --base, or --no-base")
            return None

    def open_unpruned(self, model: str, made: Checkpoint, progress: Progress) -> Checkpoint:
        """Open a second model; the base model on record is opened at the commit on record.

        Not where a model's code is trusted: anybody can write a record, and name a commit of a pull request in it.
        """
        known = made.first_source
        revision = str(known.get("revision"))
        same = known.get("id") == model and not os.path.exists(model) and not self.source.trust_remote_code
        return replace(self.source, revision=revision if same and COMMIT.fullmatch(revision) else None).open(
            model, progress
        )
