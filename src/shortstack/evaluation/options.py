"""Options of evaluate(): texts, tasks and generated text. This file imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from shortstack.architecture.anatomy import check_positions
from shortstack.data import Rows, Sources, Text, Tokens
from shortstack.data.sources import OWN
from shortstack.data.text import SOURCES_HELP, read_source
from shortstack.errors import DataError, InputError
from shortstack.evaluation.suites import SUITES, named
from shortstack.machine.options import check_installed, check_options, option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shortstack.checkpoint import Checkpoint
    from shortstack.evaluation.harness import LoadedTask


def load_harness() -> ModuleType:
    """Import the module that runs lm-evaluation-harness."""
    check_installed("lm_eval", "eval", option="tasks", why="for tasks")
    return import_module("shortstack.evaluation.harness")


@dataclass(frozen=True)
class EvaluationText:
    """Text that perplexity is measured on.

    perplexity: the source of a Text, or `none` for no text. Of `pydoc` only the held-out part is read. samples: number or
    share of windows drawn by seed; None takes all. length: tokens of a window.
    """

    perplexity: Sources = option(
        "pydoc", help=f"Text: {SOURCES_HELP} Of pydoc only the held-out part is read. none: no text."
    )
    length: int = option(512, help="Tokens per window.", minimum=2)
    samples: int | float | None = option(
        None, help="Number of windows drawn at random, or a share such as 10%. Default: all.", minimum=1, shares=True
    )

    def __post_init__(self) -> None:
        check_options(self)
        given = [*self.perplexity] if isinstance(self.perplexity, list | tuple) else self.perplexity
        try:
            source = "none" if given in ("none", [], ["none"]) else read_source(given)
        except DataError as error:
            raise error.about("perplexity") from None
        object.__setattr__(self, "perplexity", source)

    @classmethod
    def of(cls, text: EvaluationText | Rows) -> EvaluationText:
        """Take a text as it is, sources by name, or rows in memory."""
        return text if isinstance(text, EvaluationText) else cls(cast("Any", text))

    @property
    def text(self) -> Text | None:
        return None if self.perplexity == "none" else Text(self.perplexity, self.samples, self.length)

    def check(self) -> None:
        """Refuse texts that cannot be read, before a model is opened; the hub is not asked."""
        if not self.text:
            return
        self.text.check("perplexity")
        for source in self.text.sources:
            if source.name == OWN:
                raise DataError("self is what the base model writes; measure on another text", option="perplexity")
            if source.endless and not isinstance(self.samples, int):
                raise DataError(f"{source.label} has no end; give a number of windows", option="samples")

    @property
    def sources(self) -> tuple[str, ...]:
        """The name of each text.

        >>> EvaluationText(["pydoc", "my.txt"]).sources, EvaluationText("none").sources
        (('pydoc', 'my.txt'), ())
        """
        return tuple(source.label for source in self.text.sources) if self.text else ()

    def read(self, tokenizer: PreTrainedTokenizerBase, seed: int, *, at_least: int | None = None) -> dict[str, Tokens]:
        """Read the windows of each text, by its name. at_least: as for Tokens.read()."""
        self.check()
        return self.text.windows(tokenizer, seed, held_out=True, at_least=at_least) if self.text else {}


@dataclass(frozen=True)
class GenerationChecks:
    """Checks of generated text. collapse_check: None checks what shortstack cut or healed."""

    probes: bool = option(
        False, help="Twelve small generation tasks: copying, counting, brackets, sums, dates, JSON and more."
    )
    probe_items: int = option(100, help="Items of each probe, drawn by seed.", minimum=2, maximum=100)
    collapse_check: bool | None = option(
        None, help="Check generated text for loops and silence. Default: for models that shortstack pruned or healed."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.probes and self.probe_items != GenerationChecks.probe_items:
            raise InputError("none", expected="probes to be on", fix="add probes", option="probe_items")


@dataclass(frozen=True)
class Tasks:
    """Which tasks are asked, and how: `Tasks("piqa", limit=100)`.

    tasks: names of tasks or suites, as a sequence or with commas. limit: for a group, documents of each of its tasks; a
    float is their share. seed: of the examples in prompts.
    """

    tasks: str | Sequence[str] | None = option(
        None, help=f"Comma-separated suites ({', '.join(SUITES)}) or tasks of lm-evaluation-harness."
    )
    limit: int | float | None = option(
        None, help="Only the first n documents of each task, or a share such as 10%.", minimum=1, shares=True
    )
    num_fewshot: int | None = option(None, help="Few-shot examples. Default: the task's own number.", minimum=0)
    data_dir: str | Path | None = option(None, help="A folder of .jsonl or .parquet files for standard tasks.")
    include: str | Path | None = option(None, help="A folder of your own lm-eval task files.")
    batch_size: int | str = option(
        "auto", help="Sequences per forward pass: a number, or auto, by token count.", minimum=1
    )
    max_length: int | None = option(
        None, help="Maximum length of prompt plus answer, in tokens. Default: the model's context length.", minimum=1
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self)
        if self.tasks is not None:
            named(self.tasks)
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise InputError(
                repr(self.batch_size), expected="a number or auto", fix="give a number such as 16", option="batch_size"
            )
        for name, folder in (("data_dir", self.data_dir), ("include", self.include)):
            if folder is not None and not Path(folder).is_dir():
                raise InputError(f"none at {folder}", expected="a folder", fix="name one that exists", option=name)
        if self.include is not None:
            from shortstack.machine.yamlfile import check_folder

            check_folder(Path(self.include))  # the harness passes over a file that it cannot read

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, those of suites one by one."""
        return named(self.tasks or ())

    @property
    def batch(self) -> int | None:
        """Sequences in a forward; None where their tokens say it."""
        return self.batch_size if isinstance(self.batch_size, int) else None

    def check_paired(self, loaded: Sequence[LoadedTask]) -> None:
        """Refuse one document of a task, on which no two models can be compared; of a group, where its tasks count alike."""
        alone = [task for task in loaded if task.macro or len(task.tasks) == 1]
        single = [task for task in alone if task.documents(self.limit or 2, fewest=True) < 2]
        if single:
            each = "each task of " if single[0].group else ""
            expected = f"two documents of {each}{single[0].name} or more, to compare two models on"
            option, fix = ("limit", "ask for more, such as 100") if self.limit else ("tasks", "leave it out")
            raise InputError("1", expected=expected, fix=fix, option=option)

    def load(self) -> list[LoadedTask]:
        """Load the tasks with their documents."""
        data, include = (Path(folder) if folder else None for folder in (self.data_dir, self.include))
        return list(load_harness().load(self.names, data=data, include=include, shots=self.num_fewshot))

    def load_for(self, checkpoint: Checkpoint) -> list[LoadedTask]:
        """Load the tasks, where the checkpoint has positions for `max_length`."""
        if self.max_length:
            check_positions(checkpoint, self.max_length, "max_length", fix="leave it out")
        loaded = self.load()
        for task in loaded if self.max_length else ():
            load_harness().check_answers(task, self.max_length)
        return loaded
